"""Scores a table or folder of images with a reward: `python -m src.score reward=rfnet table=ads.csv out=scores.csv`.

`out` (.csv or .jsonl) has one row per scored image in the order of the table: key, value (higher is better) and the
parts of the reward. With `maps=DIR`, rewards with heat maps, such as rahf, write them over the images, as
`DIR/<name>/<key>.png`. Failed rows are listed in `<out>.failed.csv`. `<out>.run.json` records the progress: the same
command resumes an interrupted run with the same batches, so that both tables are byte-identical to those of an
uninterrupted run, and writes heat maps that are missing. Formats of tables and folders: `src/data/ads.py`.
Exit code 0: all rows were scored; 1: some failed; 2: nothing can be scored.
"""

import math
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from src.build import build
from src.config import plain
from src.data.ads import Ads, Folder, Row, RowError, Table, without_suffix
from src.data.batch import Batch, Record, collate, to_float
from src.figures.heat_maps import overlay
from src.rewards.base import Reward
from src.runtime.checkpoint import fingerprint
from src.runtime.command import command
from src.runtime.device import autocast, torch_device
from src.runtime.files import TABLES, atomic, check_names, check_outside, new_folder
from src.runtime.progress import progress_bar
from src.runtime.run_output import FailedRow, RunOutput, settings_of

READERS = min(8, os.cpu_count() or 1)  # threads that decode images; decoding releases the GIL


class Chunk(NamedTuple):
    """`size` rows: batches of images of one size with their row numbers, and the failed rows."""

    size: int
    batches: list[tuple[list[int], Batch]]
    failed: list[FailedRow]


def read(ads: Ads, rows: list[Row], max_size: int | None, pin: bool) -> Chunk:
    """Reads a chunk of rows; larger images are reduced to `max_size` px. `pin`: in pinned memory."""
    groups: dict[tuple[int, ...], list[tuple[int, Record]]] = defaultdict(list)
    failed = []
    for row in rows:
        try:
            record = ads.read(row, max_size)
            groups[record["image"].shape].append((row.number, record))
        except RowError as error:
            failed.append(FailedRow(row.number, row.key, error.file, str(error)))
    batches = []
    for group in groups.values():
        numbers, records = zip(*group, strict=True)
        batch = collate(list(records))
        if pin:
            batch = {f: v.pin_memory() if isinstance(v, Tensor) else v for f, v in batch.items()}
        batches.append((list(numbers), batch))
    return Chunk(len(rows), batches, failed)


@torch.inference_mode()
def judged(
    reward: Reward, chunk: Chunk, device: torch.device, maps: Path | None = None
) -> list[tuple[list[int], list[str], dict[str, Tensor]]]:
    """Row numbers, keys and named scores of each batch; on a GPU they may still be computed. Writes heat maps."""
    results = []
    for numbers, batch in chunk.batches:
        moved = to_float(move_data_to_device(batch, device))
        score = reward(moved["image"], moved)
        if maps:
            write_maps(maps, score.maps, moved)
        results.append((numbers, batch["key"], {"value": score.value} | score.parts))
    return results


def write_maps(folder: Path, maps: dict[str, Tensor], batch: Batch) -> None:
    """Writes heat maps over their images, except those that are not finite, whose rows fail."""
    for name, values in maps.items():
        for key, image, heat in zip(batch["key"], batch["image"], values, strict=True):
            if not heat.isfinite().all():
                continue
            with atomic(folder / map_name(name, key)) as part:
                to_pil_image(overlay(image, heat)).save(part, "PNG")


def map_name(name: str, key: str) -> str:
    """The file of a heat map, relative to its folder."""
    return f"{name}/{without_suffix(key)}.png"


def score(
    reward: Reward,
    ads: Ads,
    output: RunOutput,
    batch_size: int,
    device: torch.device,
    max_size: int | None = None,
    maps: Path | None = None,
) -> None:
    """Scores all rows that the output does not have yet, `batch_size` rows at a time."""
    done = output.progress.rows
    chunks = _chunks(islice(ads, done, None), batch_size)
    gpu = device.type != "cpu"
    loaded = _ahead(lambda rows: read(ads, rows, max_size, device.type == "cuda"), chunks, overlap=gpu)
    with progress_bar(max(ads.total, done), done) as bar:
        waiting: deque[tuple[Chunk, Any]] = deque()
        for chunk in loaded:  # a GPU computes this chunk while the previous one is written
            waiting.append((chunk, judged(reward, chunk, device, maps)))
            if len(waiting) > gpu:
                bar.update(_write(output, *waiting.popleft()))
        for pair in waiting:
            bar.update(_write(output, *pair))
    output.close()


def restore_maps(
    reward: Reward, ads: Ads, rows: int, batch_size: int, device: torch.device, max_size: int | None, maps: Path
) -> None:
    """Writes the heat maps of the first `rows` rows that are missing; failed rows have none."""
    lost = (
        row
        for row in islice(ads, rows)
        if not row.problem and not all((maps / map_name(name, row.key)).is_file() for name in reward.heat_maps)
    )
    for chunk in _ahead(lambda some: read(ads, some, max_size, False), _chunks(lost, batch_size), overlap=False):
        judged(reward, chunk, device, maps)


@command("score", "out", "batch_size")
def main(config: DictConfig) -> int:
    device = torch_device(config.device)
    precision = autocast(device, config.precision)
    reward, ads = _parts(config)
    out, place, maps = Path(config.out), Path(config.table or config.folder), config.maps and Path(config.maps)
    settings = {
        "table" if config.table else "folder": ads.fingerprint,
        "files": ads.contents(),
        "reward": plain(config.reward),
        "weights": fingerprint(reward),
        "batch_size": config.batch_size,
        "max_size": config.max_size,
        "precision": config.precision,
    }
    if maps:
        check_names(maps, {row.key: map_name("map", row.key) for row in ads if not row.problem})
        settings["maps"] = str(maps.resolve())
        if settings_of(out).get("maps") != settings["maps"]:  # the maps there are not of this run
            new_folder(maps)
    output = RunOutput(out, settings, config.resume, inputs=[place])
    options = config.batch_size, device, config.max_size
    with precision:
        if maps and output.progress.rows:
            restore_maps(reward.to(device), ads, output.progress.rows, *options, maps)
        if not output.progress.complete:
            score(reward.to(device), ads, output, *options, maps)
    return output.report(f"scored in {out}")


def _parts(config: DictConfig) -> tuple[Reward, Ads]:
    if (config.table is None) == (config.folder is None):
        raise ValueError("give either table=FILE or folder=DIR.")
    if Path(config.out).suffix not in TABLES:
        raise ValueError(f"out={config.out}: choose a .csv or .jsonl file.")
    for name, value in (("batch_size", config.batch_size), ("max_size", config.max_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    reward: Reward = build(config.reward)
    if config.maps and not reward.heat_maps:
        raise ValueError(f"maps={config.maps}: {type(reward).__name__} has no heat maps.")
    ads = Table(Path(config.table), reward.fields) if config.table else Folder(Path(config.folder), reward.fields)
    for word in ("out", "maps") if config.folder else ():
        if config[word]:
            check_outside(word, config[word], config.folder)
    return reward, ads


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def _ahead(function: Callable[[Any], Chunk], items: Iterable[Any], overlap: bool) -> Iterator[Chunk]:
    """function(item) for each item, in order, computed by threads a few items ahead.

    Without `overlap` nothing is computed while the caller works: on a CPU the network needs all cores.
    """
    with ThreadPoolExecutor(READERS) as pool:
        if not overlap:
            items = iter(items)
            while some := list(islice(items, READERS)):
                yield from list(pool.map(function, some))
            return
        futures = deque()
        try:
            for item in items:
                futures.append(pool.submit(function, item))
                if len(futures) > READERS:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write(output: RunOutput, chunk: Chunk, results: list[tuple[list[int], list[str], dict[str, Tensor]]]) -> int:
    """Writes a chunk in the order of its rows and returns its size; rows whose score is not finite fail."""
    scores, failed = {}, list(chunk.failed)
    for numbers, keys, columns in results:
        values = {name: column.tolist() for name, column in columns.items()}
        for i, (number, key) in enumerate(zip(numbers, keys, strict=True)):
            row = {name: float(f"{column[i]:.9g}") for name, column in values.items()}  # 9 digits are exact for float32
            if all(map(math.isfinite, row.values())):
                scores[number] = {"key": key} | row
            else:
                failed.append(FailedRow(number, key, "", f"the score is {row['value']}"))
    output.add([scores[number] for number in sorted(scores)], sorted(failed))
    return chunk.size


if __name__ == "__main__":
    sys.exit(main())
