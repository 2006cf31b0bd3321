"""The weighted sum or mean of several rewards, which is harder to exploit than a single reward."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from src.data.batch import Batch
from src.data.tables import TableReader
from src.rewards.base import Reward, Score

Moments = Mapping[str, Sequence[float]]


class Mix(Reward):
    """sum_i w_i value_i, or sum_i w_i (value_i - mean_i) / deviation_i with `standardize`.

    Parts: name/value, as the reward gives it, and name/part of each reward; heat maps: name/map.

    Args:
        rewards, weights: by name; None: the mean.
        threshold: of the sum, from which `src.generate` accepts an image.
        standardize: mean and standard deviation of each value by name, or a table that `src.score` has written with
            this mix, whose rows give them. None: the weights must bring the values to the same scale, or the reward
            with the widest values decides. The numbers are fixed, so that a value never depends on the batch.

    Raises ValueError if the names of rewards, weights and moments differ, and for a deviation that is not positive.
    """

    moments: Tensor | None  # (rewards, 2): mean and standard deviation

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float] | None = None,
        threshold: float | None = None,
        standardize: Moments | str | Path | None = None,
    ) -> None:
        super().__init__()
        if not rewards:
            raise ValueError("rewards: at least one is needed.")
        if weights is not None and (odd := sorted(rewards.keys() ^ weights.keys())):
            raise ValueError(f"weights and rewards differ: {', '.join(odd)}.")
        self.rewards = nn.ModuleDict(rewards)
        self.weights = {name: weights[name] if weights else 1 / len(rewards) for name in rewards}
        self.fields = frozenset().union(*(reward.fields for reward in rewards.values()))
        self.heat_maps = tuple(f"{name}/{part}" for name, reward in rewards.items() for part in reward.heat_maps)
        self.register_buffer("moments", _moments(standardize, list(rewards)) if standardize else None)
        if min(self.weights.values()) > 0:
            bounds = [torch.tensor(reward.highest) for reward in rewards.values()]
            self.highest = float(sum(self._weighted(bounds)))
        self.threshold = threshold
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        scores = {name: reward(images, batch) for name, reward in self.rewards.items()}
        value = sum(self._weighted([score.value for score in scores.values()]), images.new_zeros(len(images)))
        parts = {f"{name}/value": score.value for name, score in scores.items()}
        maps = {}
        for name, score in scores.items():
            parts |= {f"{name}/{part}": values for part, values in score.parts.items()}
            maps |= {f"{name}/{part}": values for part, values in score.maps.items()}
        return Score(value, parts, maps)

    def _weighted(self, values: Sequence[Tensor]) -> Iterator[Tensor]:
        """Each reward's summand: its value, standardized if asked for, times its weight."""
        for row, (weight, value) in enumerate(zip(self.weights.values(), values, strict=True)):
            if self.moments is not None:
                mean, deviation = self.moments[row]
                value = (value - mean) / deviation
            yield weight * value


def _moments(standardize: Moments | str | Path, names: Sequence[str]) -> Tensor:
    """Mean and standard deviation of each reward's values, (rewards, 2): as given, or of columns name/value."""
    if isinstance(standardize, (str, Path)):
        columns = [f"{name}/value" for name in names]
        table = list(TableReader(Path(standardize), columns))
        if bad := next((row for row in table if row.problem), None):
            raise ValueError(f"standardize={standardize}, line {bad.line}: {bad.problem}.")
        if not table:
            raise ValueError(f"standardize={standardize}: the table has no rows.")
        rows = [[float(row.cells[column]) for column in columns] for row in table]
        values = torch.tensor(rows, dtype=torch.float64)
        moments = torch.stack([values.mean(dim=0), values.std(dim=0, correction=0)], dim=1).float()
    else:
        if odd := sorted(standardize.keys() ^ set(names)):
            raise ValueError(f"standardize and rewards differ: {', '.join(odd)}.")
        moments = torch.tensor([list(standardize[name]) for name in names], dtype=torch.float32)
    if constant := [name for name, (_, deviation) in zip(names, moments.tolist(), strict=True) if not deviation > 0]:
        raise ValueError(f"standardize: the values of {', '.join(constant)} have no positive standard deviation.")
    return moments
