"""The metrics against scikit-learn, torchmetrics and numbers worked by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from src.data.batch import CLASSES
from src.metrics.availability import Availability, availability_metrics, calibration_error


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (300,), generator=generator)
    logits = torch.randn(300, 5, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 5)
    return logits.softmax(dim=1), labels


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_agrees_with_scikit_learn(predictions, threshold):
    probabilities, labels = predictions
    found = availability_metrics(probabilities, labels, CLASSES, threshold)
    p, y = probabilities.numpy().astype(np.float64), labels.numpy()
    chosen = p.argmax(1) == 0 if threshold is None else p[:, 0] >= threshold
    recalls: Any = sk.recall_score(y, p.argmax(1), average=None)  # pyright: ignore[reportArgumentType]
    expected = {
        "availability_precision": sk.precision_score(y == 0, chosen),
        "availability_recall": sk.recall_score(y == 0, chosen),
        "availability_f1": sk.f1_score(y == 0, chosen),
        "availability_ap": sk.average_precision_score(y == 0, p[:, 0]),
        "accuracy": sk.accuracy_score(y, p.argmax(1)),
        "macro_f1": sk.f1_score(y, p.argmax(1), average="macro"),
        **{f"recall_{name}": recalls[c] for c, name in enumerate(CLASSES)},
    }
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected, abs=1e-6)
    assert set(found) == {*expected, "ece", "availability_ece"}


def test_calibration_error_agrees_with_torchmetrics(predictions):
    probabilities, labels = predictions
    found = availability_metrics(probabilities, labels, CLASSES)
    assert found["availability_ece"] == pytest.approx(
        float(binary_calibration_error(probabilities[:, 0], (labels == 0).long(), n_bins=15)), abs=1e-6
    )
    assert found["ece"] == pytest.approx(float(multiclass_calibration_error(probabilities, labels, 5, 15)), abs=1e-6)


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.1, 0.5, 0.9, 0.8])  # bins (0, 0.5] and (0.5, 1]
    correct = torch.tensor([False, True, True, False])
    # first: |0.6 / 2 - 1/2| * 2/4 = 0.1; second: |1.7 / 2 - 1/2| * 2/4 = 0.175
    assert float(calibration_error(confidence, correct, bins=2)) == pytest.approx(0.275)
    assert calibration_error(torch.empty(0), torch.empty(0, dtype=torch.bool)) == 0
    assert calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0


def test_classes_without_samples():
    never = torch.tensor([[0.1, 0.9, 0, 0, 0], [0.2, 0.8, 0, 0, 0]])
    found = availability_metrics(never, torch.tensor([1, 1]), CLASSES)
    assert all(found[f"availability_{name}"] == 0 for name in ("precision", "recall", "f1", "ap"))
    assert found["macro_f1"] == 1
    assert [name for name in found if name.startswith("recall_")] == ["recall_space_mismatch"]
    always = availability_metrics(torch.full((4, 5), 0.2), torch.zeros(4, dtype=torch.long), CLASSES)
    assert always["availability_ap"] == 1


def test_average_precision_with_ties():
    """With one score for all, AP is the share of available samples, whatever their order."""
    flat = torch.full((8, 5), 0.2)
    for order in ([0, 0, 1, 1, 2, 3, 4, 1], [1, 1, 2, 3, 4, 1, 0, 0]):
        assert availability_metrics(flat, torch.tensor(order), CLASSES)["availability_ap"] == pytest.approx(0.25)


def test_batches_add_up(predictions):
    probabilities, labels = predictions
    metric = Availability(CLASSES, threshold=0.4)
    for chunk in torch.arange(300).split(77):
        metric.update(probabilities[chunk], labels[chunk])
    whole = availability_metrics(probabilities, labels, CLASSES, 0.4)
    assert {k: float(v) for k, v in metric.compute().items()} == {k: float(v) for k, v in whole.items()}


def test_non_finite_probabilities_are_an_error(predictions):
    probabilities, labels = predictions
    probabilities[[4, 17, 17], [0, 1, 2]] = torch.nan
    metric = Availability(CLASSES)
    metric.update(probabilities, labels)
    with pytest.raises(ValueError, match="the probabilities of 2 of 300 rows are not finite"):
        metric.compute()


def test_needs_a_class_named_available():
    with pytest.raises(ValueError, match="good, bad: none is 'available'"):
        Availability(("good", "bad"))
