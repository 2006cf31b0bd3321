"""What all sections share: device, precision, sizes, generators and batches."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from benchmarks.tuning import random_sd15
from src.data.batch import Batch, collate, to_float
from src.data.showroom.world import Showroom
from src.diffusion.generator import Generator
from src.diffusion.loading import load_generator
from src.runtime.device import PRECISIONS

REWARD = "checkpoints/rfnet-reward"


@dataclass(frozen=True)
class Setup:
    """device, and precision: bfloat16 or float32. tiny: sizes at which all sections run on a CPU in seconds."""

    device: torch.device
    precision: str = "bfloat16"
    tiny: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @property
    def generators(self) -> tuple[str, ...]:
        return ("sd15",) if self.tiny else ("showroom", "sd15")

    @property
    def repeats(self) -> int:
        return 1 if self.tiny else 3

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the matrices whose product gives the peak."""
        return (32,) if self.tiny else (4096, 8192, 16384)

    def batches(self, generator: str) -> tuple[int, ...]:
        """Batch sizes of rollouts."""
        return (1,) if self.tiny else {"sd15": (1, 4, 8, 16), "showroom": (8, 64)}[generator]

    def steps(self, generator: str) -> int:
        """Denoising steps: those of the paper, and the default of the shipped generator."""
        return 4 if self.tiny else {"sd15": 40, "showroom": 20}[generator]


def new_generator(setup: Setup, name: str) -> Generator:
    """ "showroom", the shipped generator at 128 px, or "sd15": Stable Diffusion 1.5 with ControlNet at 512 px.

    The latter has random weights: nothing is downloaded, and speed and memory do not depend on them. float32, on the
    device.
    """
    settings: dict[str, Any] = {"num_steps": setup.steps(name)}
    if name == "showroom":
        net = load_generator("checkpoints/showroom-generator", **settings)
    else:
        with setup.device:
            net = random_sd15(64 if setup.tiny else 512, tiny=setup.tiny, **settings)
    return net.eval().requires_grad_(False).to(setup.device)


@lru_cache(maxsize=1)
def sampler(setup: Setup, name: str) -> Generator:
    """A generator to sample from, its weights in the precision, as in `src.generate`. Do not change it."""
    return new_generator(setup, name).to(setup.dtype)


@lru_cache(maxsize=4)
def ads(setup: Setup, pixels: int, count: int) -> Batch:
    """Showroom products with prompts and titles, on the device."""
    rows = Showroom({"test": count}, size=pixels, holds=["prompt", "title", "product"]).split("test")
    return move_data_to_device(to_float(collate([rows[index] for index in range(count)])), setup.device)
