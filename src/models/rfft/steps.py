"""Step policies: through which denoising steps the gradient flows. Step 0 is the noisiest."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from src.build import loadable
from src.diffusion.late_steps import late


class Window(NamedTuple):
    """The gradient flows through steps start, ..., stop - 1; the image is x0-hat of the last one."""

    start: int
    stop: int


@loadable
class StepPolicy(ABC):
    """Draws steps once per batch, with the generator `chance` or torch's global one."""

    @abstractmethod
    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        """Windows sorted by start. Raises ValueError if the policy needs more steps."""


class LateRandom(StepPolicy):
    """One or several (`draws`) random late steps of one rollout (ReFL, RFFT: one of the last 10 of 40)."""

    def __init__(self, share: float = 0.25, draws: int = 1) -> None:
        _check(share)
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1.")
        self.share, self.draws = share, draws

    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        last = late(num_steps, self.share)
        if self.draws > last:
            raise ValueError(f"draws={self.draws} is more than the last {last} of {num_steps} steps.")
        steps = (num_steps - last + torch.randperm(last, generator=chance)[: self.draws]).sort().values.tolist()
        return [Window(step, step + 1) for step in steps]


class LastK(StepPolicy):
    """The last k steps in one chain: DRaFT-K (Clark et al. 2024)."""

    def __init__(self, k: int = 1) -> None:
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        self.k = k

    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        if num_steps < self.k:
            raise ValueError(f"k={self.k} is more than generator.num_steps={num_steps}.")
        return [Window(num_steps - self.k, num_steps)]


class RandomTruncation(StepPolicy):
    """From a random step in the last `share` to the end in one chain: AlignProp (Prabhudesai et al. 2023)."""

    def __init__(self, share: float = 1.0) -> None:
        _check(share)
        self.share = share

    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        start = num_steps - 1 - int(torch.randint(late(num_steps, self.share), (), generator=chance))
        return [Window(start, num_steps)]


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0 and at most 1.")
