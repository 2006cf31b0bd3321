import lightning as L
import pytest
from torch import nn

from src.runtime.system import System


class Quiet(System):
    net = nn.Identity()

    def evaluation_step(self, batch, split):
        pass


def test_metrics_of_evaluation_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch):
    seen = {}
    monkeypatch.setattr(
        L.LightningModule, "log", lambda self, name, value, **how: seen.update({name: how["sync_dist"]})
    )
    Quiet().log_dict({"train/loss": 1.0, "val/loss": 1.0, "test_perceived/f1": 1.0}, batch_size=2)
    assert seen == {"train/loss": False, "val/loss": True, "test_perceived/f1": True}
