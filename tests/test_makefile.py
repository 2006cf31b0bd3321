"""`make checkpoints` trains every shipped checkpoint, and whatever it begins with before it."""

import re
import subprocess
from pathlib import Path

from src.config import compose

ROOT = Path(__file__).parents[1]


def recipe(*targets: str) -> list[str]:
    made = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=True)
    return made.stdout.splitlines()


def test_every_shipped_checkpoint_is_trained_after_what_it_needs():
    lines = recipe("checkpoints")
    trained = [found[1] for line in lines if (found := re.search(r"-m src\.fit experiment=(\w+)", line))]
    copied = [found[1] for line in lines if (found := re.search(r"cp -r \S+ checkpoints/([\w-]+)", line))]
    shipped = {folder.name for folder in (ROOT / "checkpoints").iterdir() if folder.is_dir()}
    assert shipped <= set(copied)
    for number, name in enumerate(trained):
        config = compose("fit", [f"experiment={name}"])
        assert config.out == f"runs/fit-{name}"
        assert config.dtype == "float16" or name.replace("_", "-") not in copied
        text = (ROOT / f"conf/experiment/{name}.yaml").read_text(encoding="utf-8")
        needed = set(re.findall(r"runs/fit-(\w+)/", text))
        assert needed <= set(trained[:number])


def test_a_single_checkpoint_can_be_trained():
    lines = recipe("runs/fit-hps/.done", "TRAINER=gpu")
    assert [line.split("experiment=")[1] for line in lines if "src.fit" in line] == [
        "clip trainer=gpu resume=true",
        "hps trainer=gpu resume=true",
    ]
