"""Values that are not finite are named by key, and no weight is updated by them. Also the program of a DDP run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from src.runtime.finite import FiniteUpdates, require_finite
from src.runtime.system import System
from tests.models.stepping import QUIET, batches

NAN, STEEP = float("nan"), 0.0  # x of a batch whose loss is NaN, and of one whose gradient alone is


def test_the_error_has_the_keys_of_non_finite_rows():
    values = torch.zeros(4, 2, 3)
    assert require_finite(values, "maps", ["a", "b", "c", "d"]) is values
    values[1, 0, 2], values[3, 1, 1] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match=r"^maps: NaN or infinite for 2 of 4 images \(b, d\)\.$"):
        require_finite(values, "maps", ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"for 40 of 40 images \(0, 1, .*, 15 and 24 more\)"):
        require_finite(torch.full((40,), torch.nan), "rewards", [str(i) for i in range(40)])


class Root(System):
    """Its loss is sqrt|w x + b|, or with a hinge max(0, that), whose gradient is 0 where the loss is NaN."""

    fields = frozenset({"x"})
    lr, weight_decay, warmup, schedule = 0.1, 0.1, 0.0, "constant"

    def __init__(self, hinge: bool = False) -> None:
        super().__init__()
        self.net, self.hinge = nn.Linear(1, 1), hinge
        nn.init.ones_(self.net.weight)
        nn.init.zeros_(self.net.bias)
        self.net.bias.requires_grad_(False)
        self.before: list[float] = []  # the weight before every batch

    def training_step(self, batch: Any) -> Tensor:
        self.before.append(float(self.net.weight.detach()))
        loss = self.net(batch["x"]).abs().sqrt().mean()
        return loss.clamp_min(0) if self.hinge else loss

    def evaluation_step(self, batch: Any, split: str) -> None:
        pass


def run(system: Root, xs: list[float], nonfinite: str, rows: int = 1, name: str = "", **trainer: Any) -> L.Trainer:
    """A run on batches of `rows` rows x, 2 x, ..., each under the key of its batch."""
    steps = torch.arange(1.0, rows + 1)[:, None]
    them = [{"key": [f"row {number}{name}"] * rows, "x": x * steps} for number, x in enumerate(xs)]
    usual = {"max_epochs": 1, "limit_val_batches": 0, "callbacks": [FiniteUpdates(nonfinite)]}
    runner = L.Trainer(**QUIET | usual | trainer)
    runner.fit(system, batches(*them))
    return runner


@pytest.mark.parametrize(("bad", "hinge"), [(NAN, False), (NAN, True), (STEEP, False)])
def test_the_run_stops_before_the_update_and_names_step_and_keys(bad, hinge):
    system = Root(hinge)
    with pytest.raises(ValueError, match=r"step 1: .* is NaN or infinite \(images row 1\); no weight .*last\.ckpt"):
        run(system, [1, bad, 1], "stop")
    assert len(system.before) == 2
    assert float(system.net.weight.detach()) == system.before[1] < 1


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    ("bad", "hinge", "cause"), [(NAN, False, "loss"), (NAN, True, "loss"), (STEEP, False, "gradient")]
)
def test_a_skipped_update_changes_nothing_and_is_counted(bad, hinge, cause, clip):
    system = Root(hinge)
    with pytest.warns(UserWarning, match=rf"step 1: the {cause} is .*\(images row 1\); no weight was updated"):
        runner = run(system, [1, bad, 1, 1], "skip", gradient_clip_val=clip)
    first, before, after, last = system.before
    assert first > before == after > last  # weights do not even decay
    assert int(runner.optimizers[0].state[system.net.weight]["step"]) == 3
    assert runner.global_step == 4
    assert float(runner.callback_metrics["train/skipped_updates"]) == 1


def test_one_batch_of_those_accumulated_is_enough():
    system = Root()
    with pytest.warns(UserWarning, match=r"step 1: the loss .*\(images row 2\)"):
        run(system, [1, 1, NAN, 1, 1, 1], "skip", accumulate_grad_batches=2)
    assert system.before[2] == system.before[4] < system.before[0]


class Normalized(Root):
    """As `Root`, on features with batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm1d(1)
        self.seen: list[list[float]] = []  # the statistics after every batch

    def training_step(self, batch: Any) -> Tensor:
        return super().training_step({"x": self.statistics(batch["x"])})

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen.append([float(buffer) for buffer in self.statistics.buffers()])


def test_a_skipped_update_restores_the_batch_statistics():
    system = Normalized()
    with pytest.warns(UserWarning, match="step 1: the loss"):
        run(system, [1, NAN, 3], "skip", rows=2)
    assert system.seen[0] == system.seen[1] != system.seen[2]
    assert system.seen[2][2] == 2  # batches


def test_the_count_goes_on_after_resuming():
    one, other = FiniteUpdates("skip"), FiniteUpdates("skip")
    one.skipped = 3
    other.load_state_dict(one.state_dict())
    assert other.skipped == 3
    with pytest.raises(ValueError, match="nonfinite=warn: choose stop or skip"):
        FiniteUpdates("warn")


def test_all_processes_skip_or_stop(tmp_path: Path):
    """A real DDP run over gloo, this file being the program; the loss of one process is NaN, its gradient is not."""
    program = [sys.executable, "-m", "tests.runtime.test_finite", str(tmp_path)]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == other
    assert one["before"][0] > one["before"][1] == one["before"][2] > one["after"]
    assert one["skipped"] == 1
    assert one["error"].startswith("step 1: the loss is NaN or infinite (images row 1 of process 1); no weight")


if __name__ == "__main__":
    found: dict[str, Any] = {}
    ddp: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    for nonfinite in ("skip", "stop"):
        hinged = Root(hinge=True)
        try:
            ran = run(hinged, [1, NAN if rank == 1 else 1, 1], nonfinite, name=f" of process {rank}", **ddp)
            found |= {"before": hinged.before, "after": float(hinged.net.weight.detach())}
            found["skipped"] = int(ran.callback_metrics["train/skipped_updates"])
        except ValueError as error:
            found["error"] = str(error)
    torch.save(found, f"{sys.argv[1]}/{rank}.pt")
