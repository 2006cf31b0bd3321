"""The sections score, generate, rahf and tests: commands and models as users run them."""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import rahf as training
from benchmarks.gpu.diffusion import Cases, Numbers
from benchmarks.gpu.setup import REWARD, Setup, new_generator
from benchmarks.speed import scoring
from src.config import compose
from src.data.products import write_example
from src.data.showroom.world import Showroom
from src.generate import generate
from src.models.rahf.net import VARIANTS
from src.models.rfnet.reward import RFNetReward
from src.runtime.device import autocast

ROOT = Path(__file__).parents[2]
TINY_RAHF: dict[str, Any] = {
    **training.MODEL,
    "image_encoder": {
        "_target_": "src.models.layers.ImageEncoderSettings", "name": "test_resnet", "size": 32, "grid": 4,
    },
    "prompt_model": {
        "_target_": "src.models.rahf.net.PromptModelSettings", "name": "src/data/showroom/t5",
        "options": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1},
    },
    "heads": {
        "_target_": "src.models.rahf.net.HeadSettings",
        "map_convs": [16], "map_deconvs": [16, 16], "score_convs": [16], "score_dense": [16],
    },
}  # fmt: skip


def scored(setup: Setup) -> Cases:
    """Images per second of `src.score reward=rfnet` from PNG files, and of the forward pass alone."""
    number, pixels, sizes = (2, 64, (2,)) if setup.tiny else (256, 512, (32, 128))

    def case(size: int) -> Numbers:
        rows = Showroom({"test": number}, size=pixels).split("test")
        with autocast(setup.device, setup.precision):
            found = scoring(REWARD, rows, size, setup.device, setup.repeats)
        return {"pixels": pixels, "images": number, **found}

    return {f"rfnet, batch {size}": partial(case, size) for size in sizes}


def generated(setup: Setup) -> Cases:
    """Images per second of `src.generate reward=rfnet` with one attempt, PNG files included."""
    sizes = {"sd15": (1, 1)} if setup.tiny else {"showroom": (256, 64), "sd15": (32, 8)}
    return {
        f"{name}, batch {size}": partial(generated_case, setup, name, number, size)
        for name, (number, size) in sizes.items()
    }


def generated_case(setup: Setup, name: str, number: int, size: int) -> Numbers:
    net, reward, spent = new_generator(setup, name), RFNetReward(REWARD), 0.0
    with tempfile.TemporaryDirectory() as folder:
        shop = write_example(f"{folder}/shop", number, net.size)
        for run in range(2):  # the first warms up
            words = [f"products={shop}/products", f"prompts={shop}/prompts.csv", f"out={folder}/{run}", "attempts=1"]
            words += [f"batch_size={size}", f"device={setup.device}", f"precision={setup.precision}"]
            start = time.perf_counter()
            output, rows = generate(net, reward, compose("generate", words))
            spent = time.perf_counter() - start
            assert len(rows) == number, f"{output.progress.failed} products failed"
    return {"pixels": net.size, "steps": net.num_steps, "images": number, "images/s": number / spent, "seconds": spent}


def rahf(setup: Setup) -> Cases:
    """Training steps of RAHF with ViT-B/16 and T5-base, random weights: see `benchmarks.rahf`."""
    batch, steps = (2, 1) if setup.tiny else (16, 5)
    options = {
        "batch": str(batch), "steps": str(steps), "threads": str(torch.get_num_threads()), "device": str(setup.device),
        "precision": "bf16-mixed" if setup.precision == "bfloat16" else "32-true",
    }  # fmt: skip

    def case(variant: str) -> Numbers:
        size = (TINY_RAHF, 32) if setup.tiny else (training.MODEL, training.SIDE)
        found = training.measure(variant, options, *size)
        return {**found, "images/s": batch / found["seconds"]}

    return {f"{variant}, batch {batch}": partial(case, variant) for variant in VARIANTS}


class Outcomes:
    """A plugin for pytest: the number of tests by outcome, and the names of those that failed."""

    def __init__(self) -> None:
        self.numbers = {"passed": 0, "failed": 0, "skipped": 0}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self.numbers[report.outcome] += 1
            self.failed += [report.nodeid] if report.failed else []


def tested(setup: Setup) -> Cases:
    """The tests marked `gpu`; raises AssertionError with the names of those that fail."""

    def case() -> Numbers:
        place, outcomes = ROOT / ("tests/test_gpu.py" if setup.tiny else "tests"), Outcomes()
        start = time.perf_counter()
        code = pytest.main([str(place), "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"], [outcomes])
        assert not outcomes.failed, f"failed: {', '.join(outcomes.failed)}"
        assert code == pytest.ExitCode.OK, f"pytest ended with {code!s}"
        return {**outcomes.numbers, "seconds": time.perf_counter() - start}

    return {"marked gpu": case}
