"""How well the showroom's choices can be predicted at all: `python -m src.data.showroom.ceiling`.

A choice follows the softmax of 8 times the utilities of a group's images, so even who knows these is often wrong.
"""

from collections.abc import Iterable

import numpy as np

from src.data.showroom.feedback import SHARPNESS
from src.data.showroom.world import GROUPS, Showroom


def ceiling(groups: Iterable[np.ndarray]) -> dict[str, float]:
    """Expected accuracies of the choice of the best, in groups with the given utilities.

    oracle: of who knows the utilities, the highest there is. person: of another person's choice. random: of a guess.
    """
    groups = list(groups)
    chances = [np.exp(SHARPNESS * (utilities - utilities.max())) for utilities in groups]
    chances = [chance / chance.sum() for chance in chances]
    return {
        "oracle": float(np.mean([chance.max() for chance in chances])),
        "person": float(np.mean([(chance**2).sum() for chance in chances])),
        "random": float(np.mean([1 / len(chance) for chance in chances])),
    }


def main(split: str = "test", groups: int = 666) -> None:
    pictures = Showroom({split: 0}).split(split)
    sizes = [GROUPS[group % len(GROUPS)] for group in range(groups)]
    utilities = [pictures.utilities(group, size) for group, size in enumerate(sizes)]
    print(f"{'':8}{'oracle':>8}{'person':>8}{'random':>8}   accuracy on {groups} groups of the {split} split")
    for size in (None, *GROUPS):
        found = ceiling(u for u in utilities if size in (None, len(u)))
        print(f"{'all' if size is None else f'of {size}':8}" + "".join(f"{value:8.3f}" for value in found.values()))


if __name__ == "__main__":
    main()
