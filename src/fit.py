"""Trains a system: `python -m src.fit model=rfnet`. Everything lands in `out`:

    config.yaml      the configuration          logs/        TensorBoard
    last.ckpt        to go on from              best.ckpt    by the system's `monitor`, if it names one
    checkpoint/      the checkpoint folder      pictures/    the system's `report`, if it has one

What a system may offer besides Lightning's hooks: `monitor = ("val/macro_f1", "max")`; `card`, texts for the model card
(keys: `src.runtime.checkpoint.ABOUT`); `calibrate(batches)`, called with the validation batches after training, made
like the farthest of `AdData.kinds` if training met such ones; `report(data, folder) -> list[Path]`, which draws
pictures. Test metrics are named test/..., with maps of perception nets test_perceived/..., in a generator's hand too
test_repainted/... A source may have `about`: what its records are, whether synthetic; and `licence`: that of what is
trained on it.
Exit code 1: the data or the run are at fault; 2: the configuration is.
"""

import inspect
import logging
import os
import platform
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import OmegaConf

from src.build import build
from src.config import ConfigError, command
from src.data.module import AdData
from src.runtime import checkpoint
from src.runtime.progress import Lines, duration
from src.runtime.resume import AtomicIO, LastCheckpoint, StepSeed, open_run

HARMLESS = ("does not have many workers", "exists and is not empty", "smaller than the logging interval", "LeafSpec",
            "in eval mode at the start")  # fmt: skip


def main() -> None:
    config = OmegaConf.to_container(command("fit"), resolve=True)
    assert isinstance(config, dict)
    try:
        run({str(key): value for key, value in config.items()})
    except SIGTERMException:
        state = Path(config["out"]) / "last.ckpt"
        kept = f"resume=true continues from {state}" if state.exists() else "no state was saved yet"
        print(f"fit: stopped by SIGTERM; {kept}.", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except (ValueError, OSError, MisconfigurationException) as error:
        if config.get("debug"):
            raise
        print(f"fit: {told(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def run(config: dict[str, Any]) -> dict[str, float]:
    """The test metrics of the run that a plain configuration (`conf/fit.yaml`) describes."""
    for group in ("model", "data"):
        if not config[group]:
            raise ConfigError(f"{group}=null: there is nothing to train without a {group}.")
    set_up(config["threads"])
    L.seed_everything(config["seed"], verbose=False)
    try:
        system, data = build(config["model"]), build(config["data"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return fit(system, data, config)


def told(error: BaseException) -> str:
    """What an error says; of one from a loader's process, the line that it was raised with, without the traceback."""
    return str(error).rpartition("\nValueError: ")[2].strip()


def set_up(threads: int | None) -> None:
    """The number of CPU threads, None as torch chooses; float32 products of a GPU in its fast TF32; quiet libraries."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for harmless in HARMLESS:
        warnings.filterwarnings("ignore", f".*{harmless}")
    if threads:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def fit(system: Any, data: AdData, config: dict[str, Any]) -> dict[str, float]:
    """Trains `system` on `data`, calibrates, tests, and writes the checkpoint folder; gives the test metrics.

    `config` has out, seed, resume, init, trainer (arguments of lightning.Trainer), model, data, and perhaps
    checkpoint_every (optimizer steps), weights ("last" or "best": those tested and shipped) and dtype (of the folder).
    Raises ValueError if `out` holds a run and `resume` is false, or that run had another model, data or seed.
    """
    out, weights = Path(config["out"]), config.get("weights", "last")
    monitor = getattr(system, "monitor", None)
    if weights not in ("last", "best") or (weights == "best" and not monitor):
        raise ConfigError(f"weights={weights}: choose last{' or best' if monitor else ', the system has no monitor'}.")
    if weights == "best" and config["trainer"].get("limit_val_batches") == 0:
        raise ConfigError("weights=best needs a validation: trainer.limit_val_batches=0 leaves none.")
    dtype = config.get("dtype", "float32")
    if dtype not in checkpoint.DTYPES:
        raise ConfigError(f"dtype={dtype}: choose one of {', '.join(checkpoint.DTYPES)}.")
    data.require(system)
    tests = is_overridden("test_step", system)
    sizes = {name: len(data.split(name)) for name in ("train", "val", *(["test"] if tests else []))}
    tests = tests and sizes["test"] > 0 and config["trainer"].get("limit_test_batches") != 0
    if weights == "best" and not sizes["val"]:
        raise ConfigError("weights=best needs a validation, and the val split has no records.")
    keeper = LastCheckpoint(out / "last.ckpt", config.get("checkpoint_every", 200))
    if config.get("init") and hasattr(system, "save_weights"):
        raise ConfigError(f"init={config['init']}: a generator starts from the folder generator.folder.")
    if config.get("init") and not (config["resume"] and (out / "last.ckpt").is_file()):
        checkpoint.load_weights(system.net, config["init"])
    last = open_run(out, config)

    trainer = new_trainer(out, config, monitor, [keeper, StepSeed(config["seed"])])
    trainer.fit(system, data, ckpt_path=last, weights_only=True)
    if weights == "best" and not (out / "best.ckpt").is_file():
        warnings.warn(
            "weights=best: the run ended before the first validation; its last weights are taken.", stacklevel=2
        )
    elif weights == "best":
        state = torch.load(out / "best.ckpt", map_location="cpu", weights_only=True)
        system.load_state_dict(state["state_dict"])
    device = trainer.strategy.root_device
    checkpoint.round_weights(system.net, dtype)
    if hasattr(system, "calibrate") and sizes["val"]:
        system.to(device).eval()
        use = list(data.kinds.values())[-1:] or [{}]
        system.calibrate(data.batches("val", device, **use[0]))
        checkpoint.round_weights(system.net, dtype)
    measured = {} if tests else dict(trainer.callback_metrics)
    for kind, how in data.kinds.items() if tests else ():
        (found,) = trainer.test(system, data.batches("test", device, **how), verbose=False)
        measured |= {name.replace("test/", f"test_{kind}/", 1): value for name, value in found.items()}
    if tests:
        measured = {**trainer.test(system, datamodule=data, verbose=False)[0], **measured}

    metrics = {name: float(value) for name, value in measured.items()}
    if trainer.is_global_zero:
        spent = f"{duration(keeper.seconds)} for {trainer.global_step} steps"
        asked = measured_rows(trainer, data, sizes["test"]) if tests else 0
        about = describe(system, data, sizes, asked, config, spent, machine(device, trainer.world_size))
        checkpoint.save(out / "checkpoint", system.cpu().eval(), config["model"], metrics, about, dtype)
        pictures = system.to(device).report(data, out / "pictures") if tests and hasattr(system, "report") else []
        print("\n".join(table(metrics)))
        print("\n".join(f"wrote {path}" for path in [out / "checkpoint", *pictures]))
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


def table(metrics: dict[str, float]) -> list[str]:
    """A line for each metric; that of a tuner's test/x also tells test/before_x."""
    width, before = max(map(len, metrics), default=0), "test/before_"
    was = {name: metrics.get(before + name.removeprefix("test/")) for name in metrics}
    return [
        f"{name:<{width}}  {value:8.4f}" + ("" if was[name] is None else f"  before {was[name]:8.4f}")
        for name, value in metrics.items()
        if not name.startswith(before)
    ]


def machine(device: torch.device, world_size: int) -> str:
    """What the run ran on, such as "2 x NVIDIA H100" or "2 CPU cores, x86_64"."""
    if device.type == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} {'CPU' if device.type == 'cpu' else device.type} cores, {platform.machine()}"


def measured_rows(trainer: L.Trainer, data: AdData, size: int) -> int:
    """How many of the `size` rows of a split `trainer.limit_test_batches` leaves to be measured, about."""
    limit = trainer.limit_test_batches
    batches = limit if isinstance(limit, int) else limit * size / data.batch_size
    return min(size, round(batches * data.batch_size * trainer.world_size))


def describe(
    system: Any, data: AdData, sizes: dict[str, int], asked: int, config: dict[str, Any], spent: str, machine: str
) -> dict[str, str]:
    """The texts of the model card; `asked`: the test rows measured."""
    source = data.source
    words = [word for word in sys.argv[1:] if not word.startswith(("out=", "resume="))]
    counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
    counts += f", of which {asked} are measured" if 0 < asked < sizes.get("test", 0) else ""
    return {
        "title": config.get("choices", {}).get("model", type(system).__name__),
        "what": first_paragraph(system),
        "use": "On pictures like those of its training data.",
        "limits": "Nothing is known of it beyond the data below; measure before relying on it elsewhere.",
        "data": f"{type(source).__name__}: {getattr(source, 'about', first_paragraph(source))} Records: {counts}.",
        "command": shlex.join(["python", "-m", "src.fit", *words]),
        "time": spent,
        "machine": machine,
        "licence": getattr(source, "licence", "Apache-2.0"),
        **getattr(system, "card", {}),
    }


def first_paragraph(thing: Any) -> str:
    text = inspect.getdoc(type(thing)) or type(thing).__name__
    return " ".join(text.partition("\n\n")[0].split())


if __name__ == "__main__":
    main()
