"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from src.metrics.availability import calibration_error

LIMIT = 20.0


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [1/20, 20] that minimizes the cross-entropy of logits / temperature.

    `logits` is (samples, classes), `labels` (samples,). The predicted class does not change.
    """
    logits, labels = logits.detach().double().clone(), labels.clone()  # tensors of inference mode have no gradient
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)  # pyright: ignore[reportArgumentType]
    return float(log_temperature.detach().exp().clamp(1 / LIMIT, LIMIT))


def temperature_errors(logits: Tensor, labels: Tensor) -> dict[float, float]:
    """The `calibration_error` of the predicted class, at temperature 1 and at `best_temperature`."""
    errors = {}
    for temperature in (1.0, best_temperature(logits, labels)):
        confidence, likeliest = (logits / temperature).softmax(dim=1).max(dim=1)
        errors[temperature] = float(calibration_error(confidence, likeliest == labels))
    return errors
