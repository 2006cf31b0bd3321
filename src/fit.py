"""Trains a system: `python -m src.fit model=rfnet`. A run writes to `out`:

    config.yaml      the configuration          logs/        TensorBoard
    last.ckpt        state for resume=true      best.ckpt    the best weights by the system's `monitor`, if it has one
    checkpoint/      the checkpoint folder      figures/     figures of the system's `report`

Test metrics are named test/..., with maps of perception networks test_perceived/..., and on regenerated images
test_repainted/... `calibrate` gets validation batches like the last of these that occurs in training.
Exit code 2 after an error, 143 after SIGTERM.
"""

import inspect
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from src.build import build
from src.config import ConfigError, plain
from src.data.module import AdData
from src.data.splits import SPLITS
from src.runtime import checkpoint
from src.runtime.card import without_folders
from src.runtime.command import command
from src.runtime.device import check_accelerator, machine
from src.runtime.finite import FiniteUpdates
from src.runtime.progress import Lines, duration, table
from src.runtime.resume import AtomicIO, LastCheckpoint, StepSeed, open_run
from src.runtime.system import System


@command("fit", "out")
def main(config: DictConfig) -> None:
    try:
        run(plain(config))
    except SIGTERMException as stop:
        state = Path(config.out) / "last.ckpt"
        stop.add_note(f"resume=true continues from {state}" if state.exists() else "no state was saved yet")
        raise


def run(config: dict[str, Any]) -> dict[str, float]:
    """Trains by a plain configuration (`conf/fit.yaml`) and returns the test metrics."""
    trainer = config["trainer"]
    check_accelerator(trainer["accelerator"])
    if 0 in (trainer["max_steps"], trainer["max_epochs"]):
        raise ConfigError("trainer.max_steps=0 or trainer.max_epochs=0: there is nothing to train.")
    L.seed_everything(config["seed"], verbose=False)
    return fit(build(config["model"]), build(config["data"]), config)


def fit(system: System, data: AdData, config: dict[str, Any]) -> dict[str, float]:
    """Trains `system` on `data`, calibrates, tests, and writes the checkpoint folder; returns the test metrics.

    `config`: see `conf/fit.yaml`. Raises ValueError if `out` contains a run and `resume` is false, or that run had
    another model, data or seed.
    """
    out, weights = Path(config["out"]), config.get("weights", "last")
    if weights not in ("last", "best") or (weights == "best" and not system.monitor):
        raise ConfigError(
            f"weights={weights}: choose last{' or best' if system.monitor else '; the system has no monitor'}."
        )
    if weights == "best" and config["trainer"].get("limit_val_batches") == 0:
        raise ConfigError("weights=best needs validation, but trainer.limit_val_batches=0 disables it.")
    dtype = config.get("dtype", "float32")
    if dtype not in checkpoint.DTYPES:
        raise ConfigError(f"dtype={dtype}: choose one of {', '.join(checkpoint.DTYPES)}.")
    data.require(system)
    sizes = {name: len(data.split(name)) for name in SPLITS}
    tests = sizes["test"] > 0 and config["trainer"].get("limit_test_batches") != 0
    if weights == "best" and not sizes["val"]:
        raise ConfigError("weights=best needs validation, but the val split has no records.")
    keeper = LastCheckpoint(out / "last.ckpt", config.get("checkpoint_every", 200), data.source.fingerprint())
    updates = FiniteUpdates(config.get("nonfinite", "stop"))
    if config.get("init") and system.own_layout:
        raise ConfigError(f"init={config['init']}: the initial weights of a generator are those of generator.folder.")
    if config.get("init") and not (config["resume"] and (out / "last.ckpt").is_file()):
        checkpoint.load_weights(system.net, config["init"])
    last = open_run(out, config)

    trainer = new_trainer(out, config, system.monitor, [keeper, StepSeed(config["seed"]), updates])
    trainer.fit(system, data, ckpt_path=last, weights_only=True)
    if weights == "best" and not (out / "best.ckpt").is_file():
        warnings.warn("weights=best: the run ended before the first validation; using the last weights.", stacklevel=2)
    elif weights == "best":
        state = torch.load(out / "best.ckpt", map_location="cpu", weights_only=True)
        system.load_state_dict(state["state_dict"])
    device, place = trainer.strategy.root_device, (trainer.world_size, trainer.global_rank)
    checkpoint.round_weights(system.net, dtype)
    if sizes["val"]:
        system.to(device).eval()
        use = list(data.kinds.values())[-1:] or [{}]
        system.calibrate(data.batches("val", device, **use[0]))
        checkpoint.round_weights(system.net, dtype)
    measured = {} if tests else dict(trainer.callback_metrics)
    for kind, how in data.kinds.items() if tests else ():
        (found,) = trainer.test(system, data.batches("test", device, place=place, **how), verbose=False)
        measured |= {name.replace("test/", f"test_{kind}/", 1): value for name, value in found.items()}
    if tests:
        measured = {**trainer.test(system, datamodule=data, verbose=False)[0], **measured}

    metrics = {name: float(value) for name, value in measured.items()}
    if trainer.is_global_zero:
        spent = f"{duration(keeper.seconds)} for {trainer.global_step} steps"
        spent += f", of which {updates.skipped} were skipped" if updates.skipped else ""
        asked = data.measured_rows(trainer, sizes["test"]) if tests else 0
        about = describe(system, data, sizes, asked, config, spent, machine(device, trainer.world_size))
        checkpoint.save(out / "checkpoint", system.cpu().eval(), config["model"], metrics, about, dtype)
        figures = system.to(device).report(data, out / "figures") if tests else []
        print(table(metrics))
        print("\n".join(f"wrote {path}" for path in [out / "checkpoint", *figures]))
    return metrics


def new_trainer(out: Path, config: dict[str, Any], monitor: tuple[str, str] | None, own: list[Callback]) -> L.Trainer:
    arguments = dict(config["trainer"])
    callbacks = [*own, LearningRateMonitor()]
    if arguments.get("enable_progress_bar", True):
        terminal = sys.stdout.isatty()
        callbacks.append(TQDMProgressBar() if terminal else Lines())
        arguments["enable_progress_bar"] = terminal
    if monitor:
        callbacks.append(
            ModelCheckpoint(
                out, "best", *monitor[:1], mode=monitor[1], save_weights_only=True, enable_version_counter=False,
                save_on_train_epoch_end=False,
            )
        )  # fmt: skip
    logger = TensorBoardLogger(out, name="", version="logs")
    return L.Trainer(
        **arguments,
        default_root_dir=out,
        logger=logger,
        callbacks=callbacks,
        plugins=[AtomicIO()],
        enable_checkpointing=bool(monitor),
    )


def describe(
    system: System, data: AdData, sizes: dict[str, int], asked: int, config: dict[str, Any], spent: str, machine: str
) -> dict[str, str]:
    """The texts of the model card; `asked`: number of test rows that are measured."""
    source = data.source
    words = [without_folders(word) for word in sys.argv[1:] if not word.startswith(("out=", "resume="))]
    counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
    counts += f", of which {asked} are measured" if 0 < asked < sizes.get("test", 0) else ""
    return {
        "title": config.get("choices", {}).get("model", type(system).__name__),
        "what": first_paragraph(system),
        "use": "Images like those in the training data.",
        "limits": "It is evaluated on the data below only.",
        "data": f"{type(source).__name__}: {source.about or first_paragraph(source)} Records: {counts}.",
        "command": shlex.join(["python", "-m", "src.fit", *words]),
        "time": spent,
        "machine": machine,
        "licence": source.licence,
        **system.card,
    }


def first_paragraph(thing: Any) -> str:
    text = inspect.getdoc(type(thing)) or type(thing).__name__
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    sys.exit(main())
