"""Which denoising steps carry the gradient. Steps count from 0, the noisiest, to num_steps - 1.

Late ones are the last `share` of the steps, so that a policy means the same of 40 steps and of 20.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from src.build import loadable
from src.diffusion.late_steps import late


class Window(NamedTuple):
    """The gradient flows through steps start, ..., stop - 1; the image is the x0-hat of the last of them."""

    start: int
    stop: int


@loadable
class StepPolicy(ABC):
    """One draw per batch, from `chance`, or torch's own random numbers."""

    @abstractmethod
    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        """Windows in the order of their starts. Raises ValueError if there are fewer steps than the policy needs."""


class LateRandom(StepPolicy):
    """One late step, drawn at random (ReFL, RFFT: of the last 10 of 40), or several, `draws`, of one rollout."""

    def __init__(self, share: float = 0.25, draws: int = 1) -> None:
        _check(share)
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1.")
        self.share, self.draws = share, draws

    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        last = late(num_steps, self.share)
        if self.draws > last:
            raise ValueError(f"draws={self.draws} different steps cannot be drawn from the last {last} of {num_steps}.")
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
            raise ValueError(f"the generator takes {num_steps} steps (generator.num_steps), k={self.k}.")
        return [Window(num_steps - self.k, num_steps)]


class RandomTruncation(StepPolicy):
    """From a random late step to the end in one chain: AlignProp (Prabhudesai et al. 2023)."""

    def __init__(self, share: float = 1.0) -> None:
        _check(share)
        self.share = share

    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        start = num_steps - 1 - int(torch.randint(late(num_steps, self.share), (), generator=chance))
        return [Window(start, num_steps)]


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of the steps must be above 0 and at most 1.")
