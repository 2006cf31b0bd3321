"""What HPS is measured by and compared with on a split: accuracies and rank correlations of several judges."""

from collections.abc import Mapping

from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from src.data.batch import Batch
from src.metrics.preference import PreferenceMetrics, tie_aware_accuracy
from src.runtime.progress import columns

BASELINES = {"clip": "CLIP", "aesthetics": "rated aesthetics", "overall": "rated overall"}
COLUMNS = {"pairwise_accuracy": "pairwise", "tie_aware_accuracy": "tie-aware", "spearman": "Spearman",
           "kendall": "Kendall"}  # fmt: skip


class Judge(PreferenceMetrics):
    """`PreferenceMetrics` of one judge, and tie_aware_accuracy over the pairs, if there are any and a threshold.

    threshold: difference of the probabilities of two images up to which they are predicted to be a tie.
    """

    threshold: float | None = None

    def compute(self) -> dict[str, Tensor]:
        found, rows = super().compute(), self.pairs()
        if self.threshold is not None and len(rows[0]):
            found["tie_aware_accuracy"] = tie_aware_accuracy(*rows, self.threshold).to(rows[0])
        return found

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """The values, groups and preferences of the groups of two images."""
        values, groups, preferred = (dim_zero_cat(state) for state in (self.values, self.groups, self.preferred))
        _, place, size = groups.unique(return_inverse=True, return_counts=True)
        rows = size[place] == 2
        return values[rows], groups[rows], preferred[rows]


def preferred(batch: Batch) -> Tensor:
    """What people prefer, higher is better: by rank if the data has ranks, else the shares of the choices."""
    return -batch["rank"] if "rank" in batch else batch["chosen"]


def comparison(measured: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of a split by the folders of HPS, without the split's name: a table of these, of baselines and chance."""
    metrics = next(iter(measured.values()))  # baselines and chance are the same for all
    sizes = sorted(int(name.rpartition("_")[2]) for name in metrics if name.startswith("accuracy_of_"))
    named = {"accuracy": "accuracy", **{f"accuracy_of_{size}": f"of {size}" for size in sizes}, **COLUMNS}
    named = {name: title for name, title in named.items() if name in metrics}
    rows: list[list[str | float | None]] = [
        [folder if len(measured) > 1 else "HPS", *(own.get(name) for name in named)] for folder, own in measured.items()
    ]
    for prefix, title in BASELINES.items():
        if f"{prefix}_accuracy" in metrics:
            rows.append([title, *(metrics.get(f"{prefix}_{name}") for name in named)])
    by_chance = {"pairwise_accuracy": 0.5, "spearman": 0.0, "kendall": 0.0}
    rows.append(["random", *(metrics.get(f"random_{name}", by_chance.get(name)) for name in named)])
    count = f"({metrics['num_groups']:.0f} groups with a choice, {metrics['num_undecided']:.0f} without)"
    losses = ", ".join(f"{own['loss']:.4f}" for own in measured.values())
    return f"{columns(['', *named.values()], rows)}\n{count}\n\nloss  {losses}, of equal values {metrics['chance']:.4f}"
