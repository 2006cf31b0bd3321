"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 20.0


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [1/20, 20] that minimises the cross-entropy of logits / temperature.

    `logits` is (pictures, classes), `labels` (pictures,). It does not change which class is likeliest.
    """
    logits, labels = logits.detach().double().clone(), labels.clone()  # tensors of inference mode take no gradient
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
