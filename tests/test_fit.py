"""Runs killed by SIGKILL and resumed end in the bytes of an unbroken run. This file is also the program killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from src.config import compose, plain
from src.data.module import AdData
from src.data.splits import Source
from src.fit import fit, run
from src.runtime.resume import AtomicIO
from src.runtime.system import System
from tests.data.records import Records

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# Where each case is killed, in turn: (event, how many of them have happened, counted from each start)
KILLS: dict[str, list[tuple[str, int]]] = {
    "before the first checkpoint": [("train", 2)],
    "in the middle of an epoch": [("train", 10)],
    "in an accumulated step": [("train", 9)],
    "at the start of an epoch": [("train", 6)],
    "at the end of an epoch": [("epoch end", 2)],
    "in validation amid an epoch": [("val", 2)],
    "in validation after an epoch": [("val", 4)],
    "again and again": [("train", 5), ("train", 5), ("val", 2), ("train", 4)],
    "in the last step": [("train", 17)],
    "while calibrating": [("calibrate", 0)],
    "while testing": [("test", 1)],
}
VARIANTS = {
    "plain": {},
    "workers": {"num_workers": 2},
    "accumulate": {"accumulate_grad_batches": 2},
    "steps": {"max_epochs": -1, "max_steps": 16, "val_check_interval": 4, "check_val_every_n_epoch": None},
}
CASES = [("plain", kill) for kill in KILLS if kill != "in an accumulated step"] + [
    ("workers", "again and again"),
    ("accumulate", "in an accumulated step"),
    ("steps", "again and again"),
]


class Digits(Source):
    """26 images whose brightness tells their label."""

    classes = ("dark", "bright")
    fields = frozenset({"key", "image", "label"})

    def split(self, name: str) -> Records:
        def record(i: int) -> dict:
            picture = np.random.default_rng([i, len(name)]).integers(0, 128, (3, 4, 4), np.uint8)
            return {"key": f"{i}", "image": picture + np.uint8(127 * (i % 2)), "label": i % 2}

        return Records(map(record, range(26 if name == "train" else 10)))


class Tiny(System):
    """Has all that makes resuming hard: dropout, batch statistics, momentum, a schedule, a metric to be best at."""

    fields = frozenset({"image", "label"})
    monitor = ("val/loss", "min")

    def __init__(self, kill: tuple[str, int] | None = None, pause: float = 0.0, rate: float = 1e-2):
        super().__init__()
        self.kill, self.pause, self.rate = kill, pause, rate
        self.happened: dict[str, int] = {}
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)
        )
        self.net.register_buffer("temperature", torch.ones(()))

    def happen(self, event: str) -> None:
        time.sleep(self.pause)
        if self.kill == (event, self.happened.setdefault(event, 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        self.happened[event] += 1

    def _step(self, batch: Any, split: str) -> torch.Tensor:
        self.happen(split)
        loss = nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])
        self.log(f"{split}/loss", loss, batch_size=len(batch["label"]))
        return loss

    def training_step(self, batch):
        return self._step(batch, "train")

    def evaluation_step(self, batch, split):
        self._step(batch, split)

    def on_train_epoch_end(self):
        self.happen("epoch end")

    @torch.no_grad()
    def calibrate(self, batches):
        self.happen("calibrate")
        self.net.get_buffer("temperature").copy_(
            torch.stack([self.net(batch["image"]).std() for batch in batches]).mean()
        )

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.rate)
        steps = int(self.trainer.estimated_stepping_batches)  # has Lightning make the loader before it restores
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def configuration(out: Path, resume: bool, **change: Any) -> dict[str, Any]:
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "val_check_interval": 3, "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    data = {"num_workers": change.pop("num_workers", 0)}
    keys = ("checkpoint_every", "weights", "init", "data", "seed", "dtype", "nonfinite")
    own = {key: change.pop(key) for key in keys if key in change}
    config = {"out": str(out), "seed": 3, "resume": resume, "init": None, "checkpoint_every": 4, "data": data}
    return config | own | {"model": {"_target_": "src.x.Tiny"}, "trainer": trainer | change}


def train(
    out: Path, resume: bool = False, kill: Any = None, *, pause: float = 0.0, rate: float = 1e-2, **change: Any
) -> dict:
    config = configuration(out, resume, **change)
    L.seed_everything(3, verbose=False)
    system = Tiny(kill, pause, rate)
    return fit(system, AdData(Digits(), batch_size=4, num_workers=config["data"]["num_workers"], seed=5), config)


def outcome(out: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on its having been killed."""
    folder = out / "checkpoint"
    best = torch.load(out / "best.ckpt", weights_only=True)
    return {
        "weights": (folder / "model.safetensors").read_bytes().hex(),
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "best step": best["global_step"],
        "best": {key: value.tolist() for key, value in best["state_dict"].items()},
    }


def fork(work: Any, watch: Any = None) -> int:
    """Runs `work` in a process of its own, whose id `watch` gets; its exit code, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if watch:
        watch(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_from_outside(out: Path) -> list[int]:
    """The exit codes of a run that is killed three times, some moment after it has got further, and then left alone."""
    draw, last = random.Random(0), out / "last.ckpt"

    def stamp() -> int:
        return last.stat().st_mtime_ns if last.exists() else 0

    def kill(pid: int) -> None:
        before, deadline = stamp(), time.monotonic() + 120
        while stamp() == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)

    codes = [fork(lambda: train(out, True, pause=0.05), kill) for _ in range(3)]
    return [*codes, fork(lambda: train(out, True))]


def main(folder: Path) -> None:
    """All cases, each run forked from this process, which has imported everything and done nothing."""
    torch.set_num_threads(1)
    for name, change in VARIANTS.items():
        assert fork(lambda name=name, change=change: train(folder / f"{name}, unbroken", **change)) == 0
    codes: dict[str, Any] = {"outside": kill_from_outside(folder / "outside")}
    for variant, case in CASES:
        out = folder / f"{variant}, {case}"
        for i, kill in enumerate(KILLS[case]):
            code = fork(lambda i=i, kill=kill: train(out, i > 0, kill, **VARIANTS[variant]))  # noqa: B023
            codes[f"{out.name} {i}"] = code
        codes[f"{out.name} end"] = fork(lambda: train(out, True, **VARIANTS[variant]))  # noqa: B023
    (folder / "codes.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize(("variant", "case"), CASES, ids=[f"{variant}, {kill}" for variant, kill in CASES])
def test_killed_and_resumed_runs_equal_uninterrupted_ones(runs, variant, case):
    codes = json.loads((runs / "codes.json").read_text())
    name = f"{variant}, {case}"
    for i, kill in enumerate(KILLS[case]):
        assert codes[f"{name} {i}"] == -signal.SIGKILL, kill
    assert codes[f"{name} end"] == 0
    assert outcome(runs / name) == outcome(runs / f"{variant}, unbroken")


def test_a_run_killed_from_outside_at_random_ends_as_an_unbroken_one(runs):
    codes = json.loads((runs / "codes.json").read_text())["outside"]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert outcome(runs / "outside") == outcome(runs / "plain, unbroken")


def test_a_kill_while_writing_leaves_the_file_before(tmp_path):
    file = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"step": torch.ones(3)}, file)
    code = fork(lambda: AtomicIO().save_checkpoint({"large": torch.ones(1000), "kill": Killer()}, file))
    assert code == -signal.SIGKILL
    assert torch.load(file, weights_only=True)["step"].tolist() == [1, 1, 1]


class Killer:
    """Kills the process that pickles it."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_torn_state_is_named(tmp_path):
    train(tmp_path, max_epochs=1)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged or not a training state"):
        train(tmp_path, resume=True, max_epochs=1)


@pytest.mark.parametrize("bad", [1, 7])
def test_a_non_finite_loss_stops_the_run_which_resumes_without_that_update(bad, tmp_path, monkeypatch):
    whole_step = Tiny.training_step

    def step(self, batch):
        return whole_step(self, batch) * (torch.nan if self.trainer.global_step == bad else 1)

    monkeypatch.setattr(Tiny, "training_step", step)
    with pytest.raises(
        ValueError, match=rf"step {bad}: the loss is NaN or infinite \(images (\d+, ){{3}}\d+\); no weight"
    ):
        train(tmp_path / "a")
    state = torch.load(tmp_path / "a/last.ckpt", weights_only=True)
    assert state["global_step"] == bad // 4 * 4
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert not (tmp_path / "a/checkpoint").exists()
    for name in ("a", "b"):  # resumed and unbroken
        with pytest.warns(UserWarning, match=f"step {bad}: the loss is NaN or infinite"):
            train(tmp_path / name, resume=name == "a", nonfinite="skip")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert "for 18 steps, of which 1 were skipped." in (tmp_path / "a/checkpoint/README.md").read_text()


def test_non_finite_weights_are_not_saved(tmp_path, monkeypatch):
    def overflow(self, outputs, batch, batch_idx):
        if self.trainer.global_step == 4:
            self.net[1].weight.data[0, 0] = torch.inf

    monkeypatch.setattr(Tiny, "on_train_batch_end", overflow)
    with pytest.raises(ValueError, match=r"step 4: net\.1\.weight is NaN or infinite; .*last\.ckpt keeps step 0"):
        train(tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 0


def test_an_unknown_value_of_nonfinite_is_rejected_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="nonfinite=warn: choose stop or skip"):
        train(tmp_path / "a", nonfinite="warn")
    assert not (tmp_path / "a").exists()


def test_sigterm_says_how_to_resume(tmp_path):
    words = ["model=saliency", "model.image_size=32", "data.source.num={train: 8, val: 4, test: 4}", "threads=1"]
    words += ["data.source.cache=null", "data.num_workers=0", "data.batch_size=4", "checkpoint_every=1"]
    command = [sys.executable, "-m", "src.fit", *words, "trainer.max_steps=5000", f"out={tmp_path / 'run'}"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert told.strip().splitlines()[-1].startswith("fit: stopped by SIGTERM; resume=true continues from")


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; resume=true"):
        train(tmp_path)
    with pytest.raises(ValueError, match=r"has no config\.yaml, so its settings are unknown"):
        train(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    for text in ("colour: red", "model: [1", "- a"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other/config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml is not the configuration of a run"):
            train(tmp_path / "other")
        assert (tmp_path / "other/config.yaml").read_text() == text


def test_a_start_that_failed_leaves_its_folder_free(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        train(tmp_path / "a", init=str(tmp_path / "nowhere"))
    assert not (tmp_path / "a").exists()
    OmegaConf.save(configuration(tmp_path / "a", False, seed=9), tmp_path / "config.yaml")
    (tmp_path / "a").mkdir()
    (tmp_path / "config.yaml").rename(tmp_path / "a/config.yaml")  # of a run that never saved a state
    train(tmp_path / "a", max_epochs=1)
    assert (tmp_path / "a/checkpoint/model.safetensors").is_file()


def test_a_run_without_steps_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match=r"trainer\.max_steps=0 or trainer\.max_epochs=0: there is nothing to train"):
        run(plain(compose("fit", ["trainer.max_steps=0", "data=rf1m", "data.root=nowhere"])))


def test_splits_without_records_are_passed_over(tmp_path, monkeypatch):
    split = Digits.split
    monkeypatch.setattr(Digits, "split", lambda self, name: split(self, name) if name == "train" else [])
    train(tmp_path / "a", max_epochs=1)
    assert (tmp_path / "a/checkpoint/model.safetensors").is_file()
    with pytest.raises(ValueError, match="weights=best needs validation, but the val split has no records"):
        train(tmp_path / "b", max_epochs=1, weights="best")


def test_resuming_with_another_configuration_is_refused_by_key(tmp_path):
    old = configuration(tmp_path, False, data={"num_workers": 2, "source": {"size": 64}})
    OmegaConf.save(old, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"settings \(data\.source\.size \(64 -> 32\), seed \(3 -> 4\)\)") as error:
        train(tmp_path, True, data={"num_workers": 0, "source": {"size": 32}}, seed=4)
    assert "num_workers" not in str(error.value)  # may change: the result does not depend on it


def test_resuming_on_data_whose_contents_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Digits, "fingerprint", lambda self: "a")
    train(tmp_path, max_epochs=1)
    train(tmp_path, True, max_epochs=1)
    before = (tmp_path / "last.ckpt").read_bytes()
    monkeypatch.setattr(Digits, "fingerprint", lambda self: "b")
    with pytest.raises(ValueError, match=r"last\.ckpt was trained on other records: the contents of the data set"):
        train(tmp_path, True, max_epochs=1)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_resuming_with_other_batches_a_step_is_refused(tmp_path):
    train(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=r"settings \(trainer\.accumulate_grad_batches \(None -> 2\)\)"):
        train(tmp_path, True, max_epochs=1, accumulate_grad_batches=2)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.save({**state, "world_size": 8}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"trained by 8 processes, these are 1: .*trainer\.devices=8"):
        train(tmp_path, True, max_epochs=1)


def test_resuming_with_another_length_is_rejected(tmp_path):
    train(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=r"other settings \(trainer\.max_epochs \(1 -> 2\)\)"):
        train(tmp_path, True, max_epochs=2)


def test_half_precision_weights_are_tested_as_saved(tmp_path):
    found = train(tmp_path, max_epochs=1, dtype="float16")
    from safetensors.torch import load_file

    shipped = load_file(tmp_path / "checkpoint/model.safetensors")
    system = Tiny()
    system.net.load_state_dict(shipped)
    system.eval()
    losses = [
        nn.functional.cross_entropy(system.net(batch["image"]), batch["label"]) * len(batch["label"])
        for batch in AdData(Digits(), batch_size=4, num_workers=0).batches("test")
    ]
    assert float(sum(losses) / 10) == pytest.approx(found["test/loss"], abs=1e-6)


def test_best_weights_and_a_start_from_a_checkpoint(tmp_path, capsys):
    train(tmp_path / "a", max_epochs=2, weights="best")
    best = torch.load(tmp_path / "a/best.ckpt", weights_only=True)["state_dict"]
    from safetensors.torch import load_file

    shipped = load_file(tmp_path / "a/checkpoint/model.safetensors")
    assert torch.equal(shipped["1.weight"], best["net.1.weight"])
    assert "test/loss" in capsys.readouterr().out
    card = (tmp_path / "a/checkpoint/README.md").read_text()
    assert "Records: 26 train, 10 val, 10 test" in card
    assert "for 12 steps" in card

    train(tmp_path / "b", max_epochs=1, rate=0.0, init=str(tmp_path / "a/checkpoint"))
    again = load_file(tmp_path / "b/checkpoint/model.safetensors")
    assert torch.equal(again["1.weight"], shipped["1.weight"])


def test_impossible_wishes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="weights=first: choose last or best"):
        train(tmp_path / "a", weights="first")
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        train(tmp_path / "a", checkpoint_every=0)
    with pytest.raises(ValueError, match="weights=best needs validation"):
        train(tmp_path / "a", weights="best", limit_val_batches=0)
    with pytest.raises(ValueError, match="dtype=int8: choose one of float32, float16"):
        train(tmp_path / "a", dtype="int8")
    assert not (tmp_path / "a").exists()


def test_the_command_trains_and_data_errors_are_one_line(tmp_path):
    words = ["model=saliency", "model.image_size=32", "data.source.num={train: 8, val: 4, test: 4}", "threads=1"]
    words += ["data.source.cache=null", "data.num_workers=0", "trainer.max_steps=1", f"out={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "src.fit", *words]
    done = subprocess.run([*command, "data.batch_size=4"], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "test/mae" in done.stdout
    from src.runtime.checkpoint import load

    assert type(load(tmp_path / "run/checkpoint")).__name__ == "Saliency"
    done = subprocess.run([*command, "data.batch_size=4"], capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("fit: ")
    assert "Traceback" not in done.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]))
