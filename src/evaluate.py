"""Evaluates a checkpoint on a split: `python -m src.evaluate checkpoint=checkpoints/rfnet data=showroom split=test`.

Prints the metrics as a table and, with `out=DIR`, writes them to `DIR/metrics.json` as {"test/availability_f1": ...},
a new file.
With `compare=[DIR,DIR]` more checkpoints are measured on the same records and compared in one table; the file then has
the metrics of each by folder. `baseline=NAME` measures a model that needs no training, with or without checkpoints.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from src.build import build
from src.config import ConfigError
from src.data.module import AdData
from src.runtime.checkpoint import METRICS, load
from src.runtime.command import command
from src.runtime.device import check_accelerator
from src.runtime.files import json_numbers, new_file, write_json
from src.runtime.progress import comparison
from src.runtime.system import System


def evaluate(
    system: System, data: AdData, split: str, trainer: L.Trainer, transforms: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of the system's test step over all records of the split, named `<split>/<metric>`.

    `transforms`: transforms of the data module, applied to all records. Each record is processed once, by one of the
    devices.
    """
    place = trainer.world_size, trainer.global_rank
    batches = data.batches(split, trainer.strategy.root_device, transforms=transforms, place=place)
    (metrics,) = trainer.test(system, dataloaders=batches, verbose=False)
    return {name.replace("test/", f"{split}/", 1): value for name, value in metrics.items()}


@command("evaluate")
def main(config: DictConfig) -> None:
    folders = [str(folder) for folder in (config.checkpoint, *config.compare) if folder is not None]
    if not folders and config.baseline is None:
        raise ConfigError("needs checkpoint=... or baseline=...")
    file = config.out and new_file(Path(config.out) / METRICS)
    check_accelerator(config.trainer.accelerator)
    L.seed_everything(config.seed, verbose=False)
    systems: dict[str, System] = {folder: load(folder) for folder in folders}
    if config.baseline is not None:
        systems[config.choices.baseline] = build(config.baseline).eval()
    data = build(config.data)
    for system in systems.values():
        data.require(system)
    if not (records := len(data.split(config.split))):
        raise ValueError(f"the {config.split} split has no records.")
    trainer = L.Trainer(**build(config.trainer), logger=False, enable_checkpointing=False)
    asked = data.measured_rows(trainer, records)
    transforms = [name for name in ("repainted", "perceived") if config[name]]
    measured = {}
    for name, system in systems.items():
        data.require(system)
        measured[name] = evaluate(system, data, config.split, trainer, transforms)
    share = f"{asked} of {records}" if asked < records else records
    print(f"{', '.join(systems)} on the {config.split} split, {share} records")
    alike = len({type(system).tables for system in systems.values()}) == 1
    print(next(iter(systems.values())).tables(measured) if alike else comparison(measured))
    if file and trainer.is_global_zero:
        numbers = {name: json_numbers(metrics, f"{name}: ") for name, metrics in measured.items()}
        write_json(file, numbers if len(numbers) > 1 else next(iter(numbers.values())))


if __name__ == "__main__":
    sys.exit(main())
