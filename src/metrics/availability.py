"""How well predicted availability agrees with people's labels: the paper's numbers, all classes, and calibration."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    binary_precision,
    binary_recall,
    multiclass_f1_score,
    multiclass_recall,
)
from torchmetrics.utilities import dim_zero_cat


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error (Guo et al., ICML 2017): mean over samples of their bin's |confidence - accuracy|.

    `confidence` (samples,) in [0, 1], `correct` (samples,) of 0 and 1; equal bins, open at the left as 0.1 < c <= 0.2.
    In [0, 1], smaller is better; 0 without samples. (In torchmetrics: float32 sums, bins open at the right.)
    """
    confidence, correct = confidence.cpu(), correct.cpu()  # Apple's GPUs have no float64
    place = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, place, confidence.double() - correct.double())
    return (gap.abs().sum() / max(len(confidence), 1)).float()


def availability_metrics(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], threshold: float | None = None
) -> dict[str, Tensor]:
    """The metrics of probabilities (samples, classes) against labels (samples,), all scalars in [0, 1].

    availability_precision, _recall, _f1, _ap: available against the rest. Predicted available is what has
    p(available) >= threshold, or without one what it is the likeliest class of. AP is 0 without an available sample.
    accuracy and macro_f1: of the likeliest class; classes that are neither predicted nor true are left out of the mean.
    recall_<class>: for the classes that occur. availability_ece: of p(available); ece: of the likeliest class's
    probability. Raises ValueError for non-finite probabilities.
    """
    available, size = list(classes).index("available"), len(classes)
    if bad := int((~probabilities.isfinite()).any(dim=1).sum()):
        raise ValueError(f"the probabilities of {bad} of {len(labels)} rows are not finite.")
    confidence, predicted = probabilities.max(dim=1)
    p, true = probabilities[:, available], (labels == available).long()
    chosen = (predicted == available if threshold is None else p >= threshold).long()
    occurs = labels.bincount(minlength=size) > 0
    recall = multiclass_recall(predicted, labels, size, average="none")
    return {
        "availability_precision": binary_precision(chosen, true),
        "availability_recall": binary_recall(chosen, true),
        "availability_f1": binary_f1_score(chosen, true),
        "availability_ap": binary_average_precision(p, true) if occurs[available] else p.new_zeros(()),
        "availability_ece": calibration_error(p, true),
        "accuracy": (predicted == labels).float().mean(),
        "macro_f1": multiclass_f1_score(predicted, labels, size),
        "ece": calibration_error(confidence, predicted == labels),
        **{f"recall_{classes[c]}": recall[c] for c in range(size) if occurs[c]},
    }


class Availability(Metric):
    """`availability_metrics` of all that was added, in all processes. `classes` names the columns.

    Raises ValueError if none of them is "available".
    """

    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(self, classes: Sequence[str], threshold: float | None = None) -> None:
        super().__init__()
        if "available" not in classes:
            raise ValueError(f"classes {', '.join(classes)}: none is 'available'.")
        self.classes, self.threshold = tuple(classes), threshold
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds probabilities (batch, classes) and labels (batch,)."""
        self.probabilities.append(probabilities.detach().float())
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        return availability_metrics(
            dim_zero_cat(self.probabilities), dim_zero_cat(self.labels), self.classes, self.threshold
        )
