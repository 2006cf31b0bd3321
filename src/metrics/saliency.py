"""How well predicted heat maps agree with marked regions: MSE, NSS, KLD, AUC-Judd, SIM and CC.

The measures are those of RAHF (arXiv 2312.10240), which takes them from Bylinskii et al., "What do different evaluation
metrics tell us about saliency models?" (TPAMI 2018). Defaults are the conventions of the MIT benchmark's code
(github.com/cvzoya/saliency). Every convention that changes a number is an argument.

Predicted and true maps are (batch, height, width), results (batch,), one for each map, all in float32. Where the
published code gives NaN, the result is named: a constant prediction has NSS 0, CC 0 and AUC 0.5; a constant truth has
CC 0; the AUC is 0.5 if no pixel is a negative. SIM and KLD read a constant map as uniform (MIT keeps a zero map zero).
All functions raise ValueError for maps of another shape and for values that are not finite.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

MIT_EPSILON = 2.2204e-16
NEGATIVES = ("other", "all")
THRESHOLDS = ("fixations", "all")
MEASURES = ("mse", "mse_empty", "kld", "sim", "cc", "nss", "auc_judd")


def fixations(truth: Tensor, threshold: float = 0.0) -> Tensor:
    """The pixels that count as fixated, bool, in the shape of `truth`: those above `threshold`.

    A mean over raters has levels between 0 and 1, and an antialiased resize adds more: at 0 a region that one rater of
    three marked counts as much as one that all marked, and regions grow by a pixel.
    """
    return truth > threshold


def mse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over the pixels, in [0, 1] for maps in [0, 1]; lower is better."""
    predicted, truth = _pair(predicted, truth)
    return (predicted - truth).square().mean(dim=(1, 2))


def nss(predicted: Tensor, fixated: Tensor, correction: int = 1) -> Tensor:
    """Normalized scanpath saliency: the mean z-score of the prediction at the fixations; chance 0, higher is better.

    `fixated` is bool, at least one pixel of each map. `correction`: 1 divides the variance by N - 1 (MIT), 0 by N. In
    standard deviations of the prediction. A constant prediction has 0.
    """
    predicted, fixated = _unit(_checked(predicted)), _fixated(predicted, fixated)
    mean, degrees = predicted.mean(dim=(1, 2)), predicted.shape[1:].numel() - correction
    deviation = ((predicted - mean[:, None, None]).square().sum(dim=(1, 2)) / max(degrees, 1)).sqrt()
    there = (predicted * fixated).sum(dim=(1, 2)) / fixated.sum(dim=(1, 2))
    return torch.where(_constant(predicted), 0.0, (there - mean) / deviation)


def kld(predicted: Tensor, truth: Tensor, epsilon: float = MIT_EPSILON) -> Tensor:
    """Kullback-Leibler divergence of the prediction from the truth, in nats; lower is better, 0 at equality.

    Both maps, which must not be negative, are divided by their sums to p and g: sum g log(epsilon + g / (p + epsilon)).
    """
    predicted, truth = _pair(predicted, truth)
    p, g = _density(predicted), _density(truth)
    return (g * (epsilon + g / (p + epsilon)).log()).sum(dim=(1, 2))


def sim(predicted: Tensor, truth: Tensor, min_max: bool = True) -> Tensor:
    """Similarity, the sum over pixels of the smaller one of two maps that are divided by their sums; in [0, 1].

    `min_max` first maps each map's range to [0, 1], which removes the floor that every sigmoid has (MIT); without it
    maps must not be negative. Higher is better, 1 at equality.
    """
    predicted, truth = _pair(predicted, truth)
    if min_max:
        predicted, truth = _unit(predicted), _unit(truth)
    return torch.minimum(_density(predicted), _density(truth)).sum(dim=(1, 2))


def cc(predicted: Tensor, truth: Tensor) -> Tensor:
    """Pearson's correlation over the pixels, in [-1, 1]; chance 0, higher is better; 0 if a map is constant."""
    predicted, truth = (_unit(maps) for maps in _pair(predicted, truth))
    x, y = (maps - maps.mean(dim=(1, 2), keepdim=True) for maps in (predicted, truth))
    norm = (x.square().sum(dim=(1, 2)) * y.square().sum(dim=(1, 2))).sqrt()
    constant = _constant(predicted) | _constant(truth)
    return torch.where(constant, 0.0, (x * y).sum(dim=(1, 2)) / norm).clamp(-1, 1)


def auc_judd(predicted: Tensor, fixated: Tensor, negatives: str = "other", thresholds: str = "fixations") -> Tensor:
    """Area under the ROC curve of the prediction as a classifier of fixated pixels, in [0, 1]; higher is better.

    `fixated` is bool, at least one pixel of each map. `negatives`: the "other" pixels (MIT), or "all". `thresholds`:
    the values at "fixations" (MIT), joined to (0, 0) and (1, 1) by straight lines; or "all" values, which gives the
    Mann-Whitney statistic with half credit for ties. If no two fixations tie, the former lies above the latter by up to
    1 / (2 fixations): chance is 0.75 for a single fixation, 0.5005 for a disc of 1000 pixels.

    Sorts each map once and counts in integers: exact, with ties and without the jitter of the published code.
    """
    for name, value, choices in (("negatives", negatives, NEGATIVES), ("thresholds", thresholds, THRESHOLDS)):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose from {', '.join(choices)}.")
    keys, fixated = _descending(_checked(predicted)).flatten(1), _fixated(predicted, fixated).flatten(1)
    # map by map, since on a CPU a vector of integers is sorted ten times as fast as any batch
    areas = [_auc(*pair, negatives == "other", thresholds == "all") for pair in zip(keys, fixated, strict=True)]
    return torch.stack(areas) if areas else torch.zeros(0, device=keys.device)


def _auc(keys: Tensor, fixated: Tensor, others: bool, every: bool) -> Tensor:
    """The AUC of a map's pixels; the lower its key (pixels,), the more a pixel is predicted."""
    ranked, positive = keys.sort().values, keys[fixated].sort().values
    count, total = len(positive), len(keys) - (len(positive) if others else 0)
    if not total:
        return torch.full((), 0.5, device=keys.device)

    def before(right: bool) -> tuple[Tensor, Tensor]:
        """The negatives and the positives that come before each positive, with `right` those level with it too."""
        pixels, hits = (torch.searchsorted(found, positive, right=right) for found in (ranked, positive))
        return pixels - hits if others else pixels, hits

    negatives, hits = before(right=True)
    if every:
        doubled = 2 * total * count - negatives.sum() - before(right=False)[0].sum()
    else:
        x, y = F.pad(negatives, (1, 1)), F.pad(hits, (1, 1))
        x[-1], y[-1] = total, count
        doubled = (x.diff() * (y[1:] + y[:-1])).sum()
    return doubled / (2 * count * total)


@dataclass(frozen=True)
class Conventions:
    """What changes the numbers of `Saliency`; `dataclasses.asdict` makes it a row of a table.

    `fixation_threshold` is that of `fixations`, `nss_correction` of `nss`, `kld_epsilon` of `kld`, `auc_negatives` and
    `auc_thresholds` of `auc_judd`, `sim_min_max` of `sim`. `size`, (height, width) in px: both maps are resized to it
    before anything else; without it the prediction is resized to the truth. Bilinear, antialiased.
    """

    fixation_threshold: float = 0.0
    size: tuple[int, int] | None = None
    nss_correction: int = 1
    kld_epsilon: float = MIT_EPSILON
    auc_negatives: str = "other"
    auc_thresholds: str = "fixations"
    sim_min_max: bool = True


class Saliency(Metric):
    """Means of the measures over all samples that were added, in all processes.

    mse: over all samples. mse_empty: over those whose truth is 0 everywhere. kld, sim, cc: over the others. nss,
    auc_judd: over those with a fixation, all others unless the threshold is above 0. What has no sample is left out.
    num, num_empty, num_fixated: the number of samples, of those with an empty truth, of those with a fixation.
    """

    full_state_update = False
    sums: Tensor
    nums: Tensor

    def __init__(self, conventions: Conventions | None = None) -> None:
        super().__init__()
        self.conventions = conventions or Conventions()
        self.add_state("sums", torch.zeros(len(MEASURES)), dist_reduce_fx="sum")
        self.add_state("nums", torch.zeros(len(MEASURES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Adds predicted and true maps, each (batch, height, width) and not negative."""
        use = self.conventions
        predicted, truth = _checked(predicted), _checked(truth, "true")
        size = tuple(use.size or truth.shape[1:])
        predicted, truth = _pair(_resized(predicted, size), _resized(truth, size))
        fixated = fixations(truth, use.fixation_threshold)
        some, there = truth.flatten(1).any(dim=1), fixated.flatten(1).any(dim=1)
        found = dict.fromkeys(MEASURES, predicted.new_zeros(0))
        found["mse"] = mse(predicted, truth)
        found["mse_empty"] = found["mse"][~some]
        if some.any():
            p, g = predicted[some], truth[some]
            found |= {"kld": kld(p, g, use.kld_epsilon), "sim": sim(p, g, use.sim_min_max), "cc": cc(p, g)}
        if there.any():
            p, at = predicted[there], fixated[there]
            found["nss"] = nss(p, at, use.nss_correction)
            found["auc_judd"] = auc_judd(p, at, use.auc_negatives, use.auc_thresholds)
        self.sums = self.sums + torch.stack([found[name].sum() for name in MEASURES])
        self.nums = self.nums + torch.tensor([len(found[name]) for name in MEASURES], device=self.nums.device)

    def compute(self) -> dict[str, Tensor]:
        nums = dict(zip(MEASURES, self.nums, strict=True))
        means = {name: self.sums[i] / nums[name] for i, name in enumerate(MEASURES) if nums[name]}
        return means | {"num": nums["mse"], "num_empty": nums["mse_empty"], "num_fixated": nums["nss"]}


def _checked(maps: Tensor, what: str = "predicted") -> Tensor:
    """Finite maps of three dimensions in float32."""
    if maps.ndim != 3 or not maps.shape[1:].numel():
        raise ValueError(f"{what} maps {tuple(maps.shape)}: (batch, height, width) is needed.")
    if bad := int((~maps.isfinite()).sum()):
        raise ValueError(f"{what} maps: {bad} of {maps.numel()} values are not finite.")
    return maps.float()


def _pair(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted maps {tuple(predicted.shape)} and true maps {tuple(truth.shape)} differ in shape.")
    return _checked(predicted), _checked(truth, "true")


def _fixated(predicted: Tensor, fixated: Tensor) -> Tensor:
    """Checks that every map has a fixation."""
    if fixated.shape != predicted.shape or fixated.dtype != torch.bool:
        raise ValueError(
            f"fixations {tuple(fixated.shape)} {fixated.dtype}: bool of shape {tuple(predicted.shape)} is needed."
        )
    if empty := (~fixated.flatten(1).any(dim=1)).nonzero().flatten().tolist():
        raise ValueError(f"maps {', '.join(map(str, empty))}: no pixel is a fixation.")
    return fixated


def _constant(maps: Tensor) -> Tensor:
    return maps.amax(dim=(1, 2)) == maps.amin(dim=(1, 2))


def _unit(maps: Tensor) -> Tensor:
    """Maps with their range mapped to [0, 1]; 0 where a map is constant."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0.0)


def _density(maps: Tensor) -> Tensor:
    """Maps divided by their sums; a zero map becomes uniform."""
    if (maps < 0).any():
        raise ValueError(f"maps: the value {float(maps.min()):g} is negative.")
    peak = maps.amax(dim=(1, 2), keepdim=True)
    maps = torch.where(peak > 0, maps / peak, 1.0)
    return maps / maps.sum(dim=(1, 2), keepdim=True)


def _descending(maps: Tensor) -> Tensor:
    """int32 that fall as the float32 values rise, equal for equal values (0 and -0 too)."""
    bits = (maps.detach() + 0.0).view(torch.int32)
    return ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[:, None], size=list(size), mode="bilinear", antialias=True)[:, 0]
