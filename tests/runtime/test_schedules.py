from typing import Any

import lightning as L
import pytest
import torch

from src.runtime.schedules import adamw, pace
from src.runtime.system import System


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_rate_rises_then_falls(schedule):
    assert pace(0, 0.1, schedule) < 0.05
    assert pace(0.1, 0.1, schedule) == pytest.approx(1)
    assert pace(0.49, 0.1, schedule) > 0.5
    end = pace(0.5, 0.1, "step") if schedule == "step" else 10 * pace(1.0, 0.1, "cosine") + 0.1
    assert end == pytest.approx(0.1)
    assert pace(0, 0.0, schedule) == 1  # no warm-up


class Line(System):
    """Fits one weight and one bias; remembers the rate of each step."""

    def __init__(self):
        super().__init__()
        self.net, self.rates = torch.nn.Linear(1, 1), []

    def training_step(self, batch):
        self.rates.append([group["lr"] for group in self.optimizers().optimizer.param_groups])  # pyright: ignore
        return self.net(batch).square().mean()

    def evaluation_step(self, batch, split):
        pass

    def configure_optimizers(self):
        return adamw(self, lr=0.1, weight_decay=0.5, warmup=0.5)


def fitted(**length) -> Line:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    line = Line()
    ones: Any = [torch.ones(1)] * 8
    L.Trainer(**quiet, **length, enable_model_summary=False).fit(line, torch.utils.data.DataLoader(ones))
    return line


def test_every_step_has_its_rate_and_vectors_do_not_decay():
    line = fitted(max_epochs=1)
    assert [a for a, _ in line.rates] == pytest.approx([0.1 * pace(step / 8, 0.5) for step in range(8)])
    optimizer = line.optimizers().optimizer  # pyright: ignore
    assert [(group["weight_decay"], group["params"][0].ndim) for group in optimizer.param_groups] == [
        (0.5, 2),
        (0.0, 1),
    ]


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.max_steps or trainer\.max_epochs"):
        fitted(max_epochs=-1)
