"""Computes the depth and saliency that a data set lacks: `python -m src.perceive data=rf1m data.root=DIR out=MAPS`.

Training computes missing maps anew in every epoch; for a million pictures they are better made once. Each becomes an
8-bit PNG, `MAPS/depth/<key>.png` (white is near) and `MAPS/saliency/<key>.png`, in the picture's own shape,
`data.size` pixels along its longer side, by the nets of `data.transforms.perceived`; `data.depth=MAPS/depth
data.saliency=MAPS/saliency` then reads them. `MAPS/done.json` counts the rows that are done: after a kill the same
command goes on there. Exit code 2: nothing can be computed.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from src.build import build
from src.config import plain
from src.data.images import unfitted
from src.data.module import AdData
from src.data.splits import SPLITS
from src.runtime.command import command
from src.runtime.device import autocast, torch_device
from src.runtime.files import write_json

SAVE_EVERY = 16  # batches between two notes of what is done


class Done:
    """How many rows of each split are done, in `out/done.json`, beside the data and nets that they are of."""

    def __init__(self, out: Path, of: dict[str, Any]) -> None:
        self.file, self.of = out / "done.json", of
        self.rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
        if self.file.is_file():
            known = json.loads(self.file.read_text(encoding="utf-8"))
            if known["of"] != of:
                changed = sorted(name for name in known["of"] | of if known["of"].get(name) != of.get(name))
                raise ValueError(f"{out} holds maps of another {', '.join(changed)}; choose another out.")
            self.rows |= known["rows"]

    def note(self, split: str, rows: int) -> None:
        self.rows[split] = rows
        write_json(self.file, {"of": self.of, "rows": self.rows})


def perceive(data: AdData, split: str, out: Path, done: Done, device: torch.device) -> None:
    """Writes the maps of the rows of a split that are not done yet."""
    rows, total = done.rows[split], len(data.split(split))
    canvas, fit = getattr(data.split(split), "canvas", None), getattr(data.source, "fit", "squash")
    batches = data.batches(split, device, first=rows)
    bar = tqdm(total=total, initial=rows, desc=split, unit="ad", disable=None)
    with ThreadPoolExecutor() as pool, bar:
        for number, batch in enumerate(batches, 1):
            shapes = dict(canvas(rows + row) for row in range(len(batch["key"]))) if canvas else {}
            for field in data.lacking:
                maps = (batch[field][:, 0].float() * 255).round().byte().cpu().numpy()
                made = dict(zip(batch["key"], maps, strict=True))
                made = {key: unfitted(made[key], shape, fit) for key, shape in shapes.items() if key in made} or made
                list(pool.map(write, [out / field / key for key in made], made.values()))
            rows += len(batch["key"])
            bar.update(len(batch["key"]))
            if number % SAVE_EVERY == 0 or rows == total:
                done.note(split, rows)


def write(name: Path, values: np.ndarray) -> None:
    """A uint8 map (height, width) as PNG; `name` is the picture's, whatever its suffix."""
    file = name.with_name(f"{name.stem}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(".png", values)
    assert ok
    file.write_bytes(data.tobytes())


@command("perceive")
def main(config: DictConfig) -> None:
    device, out = torch_device(config.device), Path(config.out)
    precision = autocast(device, config.precision)
    data = build(config.data)
    if not data.lacking:
        raise ValueError("the data set lacks no map that data.transforms could make.")
    free = ("batch_size", "num_workers", "seed", "shares", "cache", "quarantine", "verify")
    done = Done(out, {name: value for name, value in plain(config.data).items() if name not in free})
    for split in SPLITS:
        with precision:
            perceive(data, split, out, done, device)
    print("\n".join(f"{out / field}: {sum(done.rows.values())} maps" for field in data.lacking))


if __name__ == "__main__":
    sys.exit(main())
