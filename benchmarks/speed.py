"""Speed of showroom loading, RFNet training and `src.score`: `python -m benchmarks.speed [KEY=VALUE ...]`.

Prints a table and writes `benchmarks/results/speed.json`. The ratio of scoring to the forward pass is reliable, because
both are measured in one run; absolute numbers depend on the load of the machine.
Options: checkpoint=checkpoints/rfnet num=384 batch=32 threads=2.
"""

import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from PIL import Image

from src.data.ads import Table
from src.data.archive import match
from src.data.batch import Batch, collate, to_float
from src.data.labels import read_labels
from src.data.showroom.world import Showroom, ShowroomSplit
from src.models.rfnet.reward import RFNetReward
from src.models.rfnet.system import RFNetSystem
from src.runtime import checkpoint
from src.runtime.device import machine
from src.runtime.run_output import RunOutput
from src.score import score

WORDS = {"checkpoint": "checkpoints/rfnet", "num": "384", "batch": "32", "threads": "2"}
RESULTS = Path(__file__).parent / "results" / "speed.json"
CPU = torch.device("cpu")


def rate(action: Callable[[], object], images: int, repeats: int = 3) -> float:
    """Images per second, the median of `repeats` runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return images / sorted(seconds)[repeats // 2]


def loading(num: int) -> dict[str, float]:
    """Images with all fields per second on one core: rendered, and read from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        drawn, cached = Showroom({"train": num}).split("train"), Showroom({"train": num}, cache=folder).split("train")
        sweep(drawn)  # decodes the sprites
        sweep(cached)
        return {
            "drawn images/s, one core": rate(lambda: sweep(drawn), num, 1),
            "cached images/s, one core": rate(lambda: sweep(cached), num),
        }


def sweep(rows: ShowroomSplit) -> None:
    for index in range(len(rows)):
        rows[index]


def indexing(lines: int = 1_000_000) -> dict[str, float]:
    """Seconds to index a label file of a million lines and find every image, and the memory of the index."""

    def fault(file: Path, line: int, key: str, reason: str) -> None:
        raise ValueError(f"{file}, line {line}: {reason}")

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "label.txt"
        with table.open("w") as file:
            file.writelines(f"part_{n % 30:02d}/{n * 7919:012d}.jpg\t{n % 6 + 1}\n" for n in range(lines))
        tracemalloc.start()
        keys, *columns = read_labels(table, None, None, False, fault)
        keys = np.array(keys)  # as RF1M keeps them
        held = tracemalloc.get_traced_memory()[0] / 2**20
        tracemalloc.stop()
        start = time.perf_counter()  # again, because tracing is slow
        keys, *columns = read_labels(table, None, None, False, fault)
        assert (match(keys, keys, moved=False) == np.arange(lines)).all()
        assert len(columns[0]) == lines
        seconds = time.perf_counter() - start
    return {"indexing 10^6 lines, s": seconds, "memory of that index, MiB": held}


def training(folder: str, batch: Batch) -> dict[str, float]:
    """Images per second of forward pass, backward pass and optimizer step on a batch in memory."""
    system = checkpoint.load(folder).train()
    assert isinstance(system, RFNetSystem)
    optimizer = torch.optim.AdamW(system.parameters(), 1e-5)
    size = len(batch["key"])

    def step() -> None:
        loss = -system.log_probabilities(batch).gather(1, batch["label"][:, None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    return {"training step images/s, data ready": rate(step, size, 5)}


def scoring(
    folder: str, rows: ShowroomSplit, size: int, device: torch.device = CPU, repeats: int = 9
) -> dict[str, float]:
    """`src.score` on a table of PNG files compared with the forward pass on batches in memory of the device."""
    reward = RFNetReward(folder).to(device)
    records = [rows[index] for index in range(len(rows))]
    batches = [
        move_data_to_device(to_float(collate(records[i : i + size])), device) for i in range(0, len(records), size)
    ]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        table = Path(name) / "ads.csv"
        write_table(table, records)
        run = iter(range(100))

        def command() -> None:
            output = RunOutput(Path(name) / f"{next(run)}.csv", {}, False)
            score(reward, Table(table, reward.fields), output, size, device)

        def passes() -> None:
            values = [reward(b["image"], b).value for b in batches]
            torch.cat(values).cpu()  # a GPU has computed them then

        passes()
        forward, whole = [], []
        for _ in range(repeats):  # alternating, so that changes of the load affect both
            forward.append(rate(passes, len(records), 1))
            whole.append(rate(command, len(records), 1))
    bare, scored = float(np.median(forward)), float(np.median(whole))
    return {
        "bare forward images/s": bare,
        "src.score images/s": scored,
        "src.score over bare forward": scored / bare,
    }


def write_table(path: Path, records: list) -> None:
    lines = ["key,image,product,title"]
    for record in records:
        for field in ("image", "product"):
            pixels = np.ascontiguousarray(record[field].transpose(1, 2, 0))
            Image.fromarray(pixels).save(path.parent / f"{record['key']}-{field}.png")
        title = record["title"].replace('"', "")
        lines.append(f'{record["key"]},{record["key"]}-image.png,{record["key"]}-product.png,"{title}"')
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    words = WORDS | dict(word.split("=", 1) for word in sys.argv[1:])
    if foreign := words.keys() - WORDS.keys():
        raise SystemExit(f"speed: no option {', '.join(sorted(foreign))}; choices: {', '.join(WORDS)}")
    num, size = int(words["num"]), int(words["batch"])
    torch.set_num_threads(int(words["threads"]))
    cv2.setNumThreads(1)
    rows = Showroom({"test": num}).split("test")
    results = loading(num) | indexing()
    results |= training(words["checkpoint"], to_float(collate([rows[i] for i in range(size)])))
    results |= scoring(words["checkpoint"], rows, size)
    for name, value in results.items():
        print(f"{name:<32} {value:10.2f}")
    RESULTS.parent.mkdir(exist_ok=True)
    about = {
        "machine": f"{machine(CPU)}, torch {torch.__version__}, {words['threads']} threads",
        "date": date.today().isoformat(),
    }
    RESULTS.write_text(json.dumps(about | {"batch": size} | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
