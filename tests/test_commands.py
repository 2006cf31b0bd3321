"""The commands as a user types them, in processes of their own, at toy sizes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.data.rf1m import write_example
from tests.rewards import tiny

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SMALL = [
    "model.image_encoder.name=test_resnet",
    "model.image_encoder.options=null",
    "model.image_encoder.stage=-1",
    "model.image_encoder.size=32",
    "model.fusion.width=16",
    "model.fusion.num_heads=2",
    "model.fusion.feedforward=32",
    "model.text_encoder.options={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}",
    "threads=1",
    "trainer.accelerator=cpu",
    "trainer.enable_model_summary=false",
]


def start(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "src.fit", *SMALL, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(*words: str) -> str:
    process = start(*words)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return out


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tiny.rfnet(tmp_path_factory.mktemp("nets"))
    return f"data.transforms.perceived={{depth: {made['depth']}, saliency: {made['saliency']}}}"


def test_rfnet_killed_at_a_random_step_ends_in_the_bytes_of_an_unbroken_run(tmp_path: Path, nets: str) -> None:
    words = [
        "model=rfnet",
        nets,
        "data.shares.perceived=0.5",
        "data.num_workers=1",
        "data.batch_size=4",
        "data.source.size=32",
    ]
    words += ["data.source.num={train: 40, val: 8, test: 8}", f"data.source.cache={tmp_path / 'cache'}"]
    words += ["trainer.max_steps=24", "checkpoint_every=3", "model.fusion.dropout=0.1", "model.map_encoder.size=32"]
    words += ["resume=true"]
    finish(*words, f"out={tmp_path / 'whole'}")
    killed = start(*words, f"out={tmp_path / 'killed'}")
    last, deadline = tmp_path / "killed/last.ckpt", time.monotonic() + 200
    while not last.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert last.exists()
    assert not (tmp_path / "killed/checkpoint/model.safetensors").exists()
    finish(*words, f"out={tmp_path / 'killed'}")
    weights = [(tmp_path / run / "checkpoint/model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    measured = json.loads((tmp_path / "whole/checkpoint/metrics.json").read_text())
    assert {"test/loss", "test_perceived/loss"} <= measured.keys()
    assert measured["test/loss"] != measured["test_perceived/loss"]


def test_rfnet_paper_runs_on_a_folder_with_the_layout_of_the_release(tmp_path: Path, nets: str) -> None:
    write_example(tmp_path / "rf1m", count=40, size=48)
    words = ["experiment=rfnet_paper", "data=rf1m", f"data.root={tmp_path / 'rf1m'}", "trainer.max_steps=2", nets]
    words += ["data.size=48", "data.batch_size=4", "data.num_workers=0", "data.val=0.2", "data.test=0.2"]
    said = finish(*words, f"out={tmp_path / 'run'}")
    assert "test/availability_ap" in said
    card = (tmp_path / "run/checkpoint/README.md").read_text()
    assert "academic research only" in card
    assert "license: other" in card
    assert (tmp_path / "run/figures/ads.png").exists()
