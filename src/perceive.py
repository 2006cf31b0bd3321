"""Computes the missing depth and saliency maps of a data set: `python -m src.perceive data.root=DIR out=MAPS`.

Training computes missing maps again in every epoch; with many images it is faster to compute them once. The networks of
`data.transforms.perceived` write `MAPS/depth/<key>.png` (white is near) and `MAPS/saliency/<key>.png`: 8-bit PNG with
the aspect ratio of the image, `data.size` px along the longer side. Use them with `data.depth=MAPS/depth
data.saliency=MAPS/saliency`. `MAPS/manifest.jsonl` lists them by key, with a hash of the size and the time of change of
the row's files: the same command resumes an interrupted run, and computes the maps of new and changed images.
Exit code 0: all maps are computed; 1: some images cannot be read; 2: nothing can be computed.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig

from src.build import build
from src.config import plain
from src.data.images import SUFFIXES
from src.data.module import AdData
from src.data.splits import SPLITS
from src.runtime.checkpoint import fingerprint
from src.runtime.command import command
from src.runtime.device import autocast, torch_device
from src.runtime.files import atomic, check_names
from src.runtime.progress import progress_bar
from src.runtime.run_output import FailedRow, RunOutput

FREE = (
    "batch_size",
    "num_workers",
    "seed",
    "shares",
    "cache",
    "quarantine",
    "verify",
)  # may change


def perceive(
    data: AdData, split: str, keys: dict[int, str], states: dict[str, str], output: RunOutput, device: torch.device
) -> None:
    """Writes the maps of some rows of a split; `keys`: key by row; `states`: of the files by key."""
    rows, waiting = data.split(split), iter(keys.items())
    with ThreadPoolExecutor() as pool, progress_bar(len(keys), desc=split) as bar:
        for batch in data.batches(split, device, rows=list(keys)):
            maps = {f: (batch[f][:, 0].float() * 255).round().byte().cpu().numpy() for f in data.lacking}
            files, made, failed = {}, [], []
            for index, (found, (row, key)) in enumerate(zip(batch["key"], waiting, strict=False)):
                if found != key:  # the data set replaces a row that cannot be read by another one
                    failed.append(FailedRow(row + 1, key, "", f"cannot be read (split {split})"))
                    continue
                made.append({"key": key, "state": states[key]} | {field: map_name(field, key) for field in maps})
                unfitted = rows.unfitted(row, {field: values[index] for field, values in maps.items()})
                files |= {output.out / map_name(field, key): values for field, values in unfitted.items()}
            list(pool.map(write, files, files.values()))
            output.add(made, failed)
            bar.update(len(batch["key"]))


def write(file: Path, values: np.ndarray) -> None:
    """Writes a uint8 map (height, width) as PNG."""
    with atomic(file) as part:
        part.write_bytes(cv2.imencode(".png", values)[1].tobytes())


def map_name(field: str, key: str) -> str:
    """The file of a map, relative to the output folder."""
    stem, suffix = os.path.splitext(key)
    return f"{field}/{stem if suffix.lower() in SUFFIXES else key}.png"


@command("perceive", "out")
def main(config: DictConfig) -> int:
    device, out = torch_device(config.device), Path(config.out)
    precision = autocast(device, config.precision)
    data = build(config.data)
    if not data.lacking:
        raise ValueError("the data set has all maps that data.transforms can compute.")
    settings = {name: value for name, value in plain(config.data).items() if name not in FREE}
    for name, transform in data.transforms.items():
        transform.prepare(transform.makes - data.source.fields)
        settings[f"weights of {name}"] = fingerprint(transform)
    keys = {split: dict(enumerate(data.split(split).keys())) for split in SPLITS}
    names = {f: {key: map_name(f, key) for rows in keys.values() for key in rows.values()} for f in data.lacking}
    for field_names in names.values():
        check_names(out, field_names)
    files = (out / name for field_names in names.values() for name in field_names.values())
    output = RunOutput(out, settings | {"precision": config.precision}, resume=True, files=files)
    states = {key: data.split(split).state(row) for split, rows in keys.items() for row, key in rows.items()}

    def kept(row: dict[str, Any]) -> bool:
        key = row["key"]
        return (
            key in states and row.get("state") == states[key] and all((out / n[key]).is_file() for n in names.values())
        )

    done = output.results(kept)
    for split, rows in keys.items():
        with precision:
            perceive(data, split, {row: key for row, key in rows.items() if key not in done}, states, output, device)
    return output.report(f"images with {' and '.join(data.lacking)} in {out}")


if __name__ == "__main__":
    sys.exit(main())
