"""How fast AUC-Judd is beside pysaliency's and a plain loop: `python -m benchmarks.saliency [KEY=VALUE ...]`.

All on one CPU thread, in turn, on the same maps: discs of 1/20 of the height, as the marks of RichHF-18K, and smooth
predictions of them. Values are compared before they are timed. Prints a table and writes
`benchmarks/results/saliency.json`: milliseconds of CPU time per map, the median of the repeats, and the ratio to ours.

    ours                 src.metrics.saliency.auc_judd, `batch` maps at once
    pysaliency           AUC_per_image with thresholds at the fixations, without jitter; its objects are made beforehand
    pysaliency, jitter   AUC_Judd with its defaults, which add noise to every map
    loop                 counts a whole map for each fixation, as the MIT benchmark's code does; the first `loop` maps

It needs pysaliency: `make test-parity` makes an environment with it, `.cache/parity`.
Words: num=256 size=384 batch=16 repeats=5 loop=8.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.metrics.saliency import auc_judd, fixations
from src.runtime.device import machine

WORDS = {"num": "256", "size": "384", "batch": "16", "repeats": "5", "loop": "8"}
RESULTS = Path(__file__).parent / "results" / "saliency.json"
PACKAGES = ("torch", "numpy", "pysaliency", "numba")


def heat_maps(num: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predicted and true maps (num, size, size) in [0, 1]: one to eight discs, of three raters; smooth predictions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = np.zeros((num, size, size), np.float32)
    for sample in range(num):
        for _ in range(1 + sample % 8):
            row, column = rng.integers(0, size, 2)
            truth[sample] += ((y - row) ** 2 + (x - column) ** 2 <= (size / 20) ** 2) / np.float32(3)
    marks = torch.from_numpy(truth).clamp_max(1)
    coarse = F.interpolate(marks[:, None], (24, 24), mode="bilinear", antialias=True)
    logits = 4 * coarse - 3 + torch.from_numpy(rng.normal(size=coarse.shape)).float()
    return F.interpolate(logits, (size, size), mode="bicubic").sigmoid()[:, 0], marks


class Pysaliency:
    """Maps and fixations as pysaliency takes them. Raises ImportError without it."""

    def __init__(self, predicted: Tensor, fixated: Tensor) -> None:
        import pysaliency  # pyright: ignore[reportMissingImports]

        maps = predicted.numpy()

        class Predicted(pysaliency.SaliencyMapModel):
            def _saliency_map(self, stimulus: np.ndarray) -> np.ndarray:
                return maps[stimulus[0, 0]]  # every pixel of a stimulus is its number

        numbers, rows, columns = np.nonzero(fixated.numpy())
        self.model = Predicted(caching=False)
        self.stimuli = pysaliency.Stimuli([np.broadcast_to(n, maps.shape[1:]) for n in range(len(maps))])
        self.fixations = pysaliency.Fixations.create_without_history(x=columns, y=rows, n=numbers)

    def auc(self, nonfixations: str = "unfixated", thresholds: str = "fixations") -> list[float]:
        """The AUC of each map."""
        return self.model.AUC_per_image(self.stimuli, self.fixations, nonfixations=nonfixations, thresholds=thresholds)

    def auc_judd(self) -> float:
        """The mean AUC of the maps with jitter, the default."""
        return self.model.AUC_Judd(self.stimuli, self.fixations)


def loop(predicted: np.ndarray, fixated: np.ndarray) -> float:
    """The AUC of a map with a pass over all its pixels for each of its fixations."""
    values = np.sort(predicted[fixated])[::-1]
    above = np.array([(predicted >= value).sum() for value in values])
    hits = np.array([(values >= value).sum() for value in values])
    x = np.concatenate([[0], (above - hits) / (predicted.size - len(values)), [1]])
    return float(np.trapezoid(np.concatenate([[0], hits / len(values), [1]]), x))


def milliseconds(ways: dict[str, tuple[Callable[[], object], int]], repeats: int) -> dict[str, float]:
    """CPU time per map, the median of the repeats, in which ways take turns. A way is a call and its number of maps."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (call, _) in ways.items():
            start = time.process_time()
            call()
            spent[name].append(time.process_time() - start)
    return {name: float(np.median(spent[name])) * 1e3 / maps for name, (_, maps) in ways.items()}


def main() -> int:
    words = WORDS | dict(word.split("=", 1) for word in sys.argv[1:])
    if foreign := words.keys() - WORDS.keys():
        raise SystemExit(f"saliency: no word {', '.join(sorted(foreign))}; there are {', '.join(WORDS)}")
    num, size, batch, repeats, loops = (int(words[name]) for name in WORDS)
    try:
        versions = {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as error:
        raise SystemExit(
            f"saliency: no package {error.name}; `make test-parity` makes `.cache/parity`, which has it."
        ) from None
    torch.set_num_threads(1)
    predicted, truth = heat_maps(num, size)
    fixated = fixations(truth)
    peer = Pysaliency(predicted, fixated)

    def ours() -> Tensor:
        return torch.cat([auc_judd(*pair) for pair in zip(predicted.split(batch), fixated.split(batch), strict=True)])

    def plain() -> list[float]:
        return [loop(predicted[n].numpy(), fixated[n].numpy()) for n in range(loops)]

    values = ours().double()
    found = {"pysaliency": torch.tensor(peer.auc()).double(), "loop": torch.tensor(plain()).double()}
    differences = {name: float((x - values[: len(x)]).abs().max()) for name, x in found.items()}
    differences["pysaliency, jitter (of the mean)"] = abs(float(peer.auc_judd()) - float(values.mean()))
    if max(differences[name] for name in found) > 1e-6:
        raise SystemExit(f"saliency: the values differ: {differences}")
    ways = {
        "ours": (ours, num),
        "pysaliency": (peer.auc, num),
        "pysaliency, jitter": (peer.auc_judd, num),
        "loop": (plain, loops),
    }
    spent = milliseconds(ways, repeats)
    results = {
        "machine": f"{machine(torch.device('cpu'))}, torch {versions['torch']}, 1 thread",
        "date": date.today().isoformat(),
        "versions": versions,
        "words": words,
        "fixations per map": float(fixated.sum() / num),
        "mean AUC-Judd": float(values.mean()),
        "largest difference from ours": differences,
        "maps": {name: maps for name, (_, maps) in ways.items()},
        "CPU ms per map": spent,
        "relative to ours": {name: value / spent["ours"] for name, value in spent.items()},
    }
    for name, value in spent.items():
        print(f"{name:<20} {value:10.2f} ms of CPU per map, {value / spent['ours']:7.1f} times ours")
    print(f"largest differences: {differences}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
