import pytest
import torch
import torch.nn.functional as F

from src.metrics.calibration import best_temperature


def drawn(temperature: float, num: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels that follow softmax(logits / temperature)."""
    source = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num, 5, generator=source)
    return logits, torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=source)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    assert best_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.08)


def test_no_temperature_on_a_grid_is_better():
    logits, labels = drawn(1.7, 500)
    best = best_temperature(logits, labels)
    loss = F.cross_entropy(logits / best, labels)
    assert all(loss <= F.cross_entropy(logits / t, labels) + 1e-6 for t in torch.linspace(0.3, 5, 95))


def test_it_stays_within_its_bounds_and_takes_tensors_of_inference_mode():
    with torch.inference_mode():
        logits, labels = torch.eye(5), torch.arange(5)
    assert best_temperature(logits, labels) == pytest.approx(1 / 20)  # always right: infinitely sure
    assert best_temperature(logits, (labels + 1) % 5) == pytest.approx(20.0)  # always wrong
