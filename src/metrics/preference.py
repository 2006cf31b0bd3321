"""How well values follow people's choices within groups of any size: accuracies and rank correlations.

Arguments are vectors (rows,): `values` of a model, higher is better; `groups`, integers, the group of each row, in any
order; `preferred`, what people prefer, higher is better: shares of the choices, or negative ranks. Results are float64
on the CPU. Groups come in the order of their numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

THRESHOLDS = tuple(n / 10 for n in range(11))  # that PickScore's authors try


class Hits(NamedTuple):
    """For each group float64 (groups,): whether the best value is of a best image; of how many images; by chance.

    hit: in [0, 1]; NaN if people prefer no image of the group to another. random: what equal values have.
    """

    hit: Tensor
    size: Tensor
    random: Tensor


def hits(values: Tensor, groups: Tensor, preferred: Tensor) -> Hits:
    """The n-way accuracy of each group: of k equal best values each counts 1/k."""
    values, place, preferred = _rows(values, groups, preferred)
    size = place.bincount().double()
    top, best = _is_best(values, place), _is_best(preferred, place)
    hit = _sums(top & best, place) / _sums(top, place)
    random = _sums(best, place) / size
    return Hits(hit.where(random < 1, torch.nan), size, random)


def n_way_accuracy(values: Tensor, groups: Tensor, preferred: Tensor) -> dict[str, Tensor]:
    """accuracy: the mean of `hits` over the groups with a choice; random_accuracy: what equal values would have.

    accuracy_of_<n> and random_accuracy_of_<n>: over the groups of n images. num_groups, num_undecided: the number of
    groups with and without a choice. Accuracies are 0 without a group.
    """
    hit, size, random = hits(values, groups, preferred)
    decided = ~hit.isnan()
    found = {"accuracy": _mean(hit[decided]), "random_accuracy": _mean(random[decided])}
    for count in size[decided].unique():
        rows = decided & (size == count)
        found |= {f"accuracy_of_{count:.0f}": hit[rows].mean(), f"random_accuracy_of_{count:.0f}": random[rows].mean()}
    return found | {"num_groups": decided.sum(), "num_undecided": (~decided).sum()}


def pairwise_accuracy(values: Tensor, groups: Tensor, preferred: Tensor, tie: float = 0.5) -> Tensor:
    """The share of the pairs within groups, one of which is preferred, whose values say so; 0 without such a pair.

    tie: what a pair of equal values counts; 0 in ImageReward's test. All pairs count alike: large groups count more.
    """
    values, place, preferred = _rows(values, groups, preferred)
    first, second = pairs(place)
    said, true = (torch.sign(x[first] - x[second]) for x in (values, preferred))
    return _mean(torch.where(said == 0, tie, (said == true).double())[true != 0])


def tie_aware_accuracy(values: Tensor, groups: Tensor, preferred: Tensor, threshold: float) -> Tensor:
    """PickScore's accuracy of pairs, which may be ties (Kirstain et al., 2023, arXiv 2305.01569, section 5); 0 of none.

    A pair is predicted to be a tie if its probabilities, the softmax of its values, differ by at most `threshold`. It
    counts 1 if this is what people say, 0.5 if only one of the two is a tie, else 0. Values are therefore logits: with
    their scale, exp(logit_scale) times the cosine. Raises ValueError naming a group that is no pair.
    """
    values, place, preferred = _rows(values, groups, preferred)
    sizes = place.bincount()[place]
    for row in (sizes != 2).nonzero()[:1, 0]:
        raise ValueError(f"group {int(groups[row])} has {int(sizes[row])} images, not 2.")
    first, second = pairs(place)
    difference = torch.tanh((values[first] - values[second]) / 2)  # of the probabilities
    said = torch.sign(difference).where(difference.abs() > threshold, 0)
    true = torch.sign(preferred[first] - preferred[second])
    return _mean(1 - (said - true).abs() / 2)


def tuned_threshold(
    values: Tensor, groups: Tensor, preferred: Tensor, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[float, Tensor]:
    """The first of the thresholds with the highest `tie_aware_accuracy`, and that; to be tuned on validation pairs."""
    accuracies = torch.stack([tie_aware_accuracy(values, groups, preferred, t) for t in thresholds])
    best = int(accuracies.argmax())
    return thresholds[best], accuracies[best]


def rank_correlations(values: Tensor, groups: Tensor, preferred: Tensor, kind: str = "spearman") -> Tensor:
    """The rank correlation of each group (groups,), in [-1, 1]: Spearman's, or "kendall": tau-b; both allow for ties.

    0 if the values of a group are equal: they order nothing. NaN if people prefer none: there is no order to follow.
    """
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind={kind}: choose spearman or kendall.")
    values, place, preferred = _rows(values, groups, preferred)
    first, second = pairs(place)
    x, y = (torch.sign(column[first] - column[second]) for column in (values, preferred))
    of = place[first]
    if kind == "spearman":  # centred ranks: half the number of smaller ones minus half that of larger ones
        of = place
        x, y = (torch.zeros_like(values).index_add(0, first, s).index_add(0, second, -s) for s in (x, y))
    num = int(place.max()) + 1 if len(place) else 0
    xy, xx, yy = (torch.zeros(num, dtype=torch.float64).index_add(0, of, term) for term in (x * y, x * x, y * y))
    return torch.where(yy == 0, torch.nan, xy / (xx * yy).sqrt().clamp_min(1e-12)).clamp(-1, 1)


def rank_correlation(values: Tensor, groups: Tensor, preferred: Tensor, kind: str = "spearman") -> Tensor:
    """The mean of `rank_correlations` over the groups with an order; 0 without one."""
    found = rank_correlations(values, groups, preferred, kind)
    return _mean(found[~found.isnan()])


def pairs(place: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of rows of one group, (pairs,) twice: each once."""
    order = place.argsort(stable=True)
    largest = int(place.bincount().max()) if len(place) else 0
    found = [torch.empty(2, 0, dtype=torch.long)]
    for step in range(1, largest):
        both = torch.stack([order[:-step], order[step:]])
        found.append(both[:, place[both[0]] == place[both[1]]])
    first, second = torch.cat(found, dim=1)
    return first, second


class PreferenceMetrics(Metric):
    """The metrics above over all groups that were added, in all processes.

    Those of `n_way_accuracy`; pairwise_accuracy; spearman and kendall of ranks, if groups have more than two images.
    """

    full_state_update = False
    values: list[Tensor]
    groups: list[Tensor]
    preferred: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("values", "groups", "preferred"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, values: Tensor, groups: Tensor, preferred: Tensor) -> None:
        """Adds whole groups. Raises ValueError for another shape, or a number that is not finite."""
        _rows(values, groups, preferred)
        self.values.append(values.detach().float())
        self.groups.append(groups)
        self.preferred.append(preferred.float())

    def compute(self) -> dict[str, Tensor]:
        rows = dim_zero_cat(self.values), dim_zero_cat(self.groups), dim_zero_cat(self.preferred)
        found = n_way_accuracy(*rows) | {"pairwise_accuracy": pairwise_accuracy(*rows)}
        if rows[1].unique(return_counts=True)[1].max() > 2:
            found |= {kind: rank_correlation(*rows, kind) for kind in ("spearman", "kendall")}
        return {name: value.to(rows[0]) for name, value in found.items()}


def _rows(values: Tensor, groups: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values and preferences as float64, and the place of each row's group among the groups."""
    if values.ndim != 1 or values.shape != groups.shape or values.shape != preferred.shape:
        shapes = ", ".join(f"{tuple(x.shape)}" for x in (values, groups, preferred))
        raise ValueError(f"values, groups and preferences are {shapes}: three vectors of equal length are needed.")
    for what, numbers in (("values", values), ("preferences", preferred)):
        if bad := int((~numbers.isfinite()).sum()):
            raise ValueError(f"{what}: {bad} of {len(numbers)} are not finite.")
    place = groups.cpu().unique(return_inverse=True)[1]
    return values.detach().cpu().double(), place, preferred.detach().cpu().double()


def _is_best(values: Tensor, place: Tensor) -> Tensor:
    """Which rows have the largest value of their group."""
    largest = torch.full((int(place.max()) + 1 if len(place) else 0,), -torch.inf, dtype=values.dtype)
    return values == largest.scatter_reduce(0, place, values, "amax")[place]


def _sums(rows: Tensor, place: Tensor) -> Tensor:
    return place.bincount(rows.double())


def _mean(values: Tensor) -> Tensor:
    return values.double().mean() if len(values) else torch.zeros((), dtype=torch.float64)
