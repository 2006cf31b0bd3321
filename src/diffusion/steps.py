"""Which denoising steps carry the gradient. Steps count from 0, the noisiest, to num_steps - 1."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """The gradient flows through steps start, ..., stop - 1; the picture is the x0-hat of the last of them."""

    start: int
    stop: int


class StepPolicy(ABC):
    """One draw per batch, from torch's random numbers."""

    @abstractmethod
    def __call__(self, num_steps: int) -> list[Window]:
        """Windows in the order of their starts. Raises ValueError if there are fewer steps than the policy needs."""


class LateRandom(StepPolicy):
    """One late step, drawn at random (ReFL, RFFT), or several, `draws`, of one rollout.

    last: the steps to draw from are the last so many; the papers: 10 of 40.
    """

    def __init__(self, last: int = 10, draws: int = 1) -> None:
        if not 1 <= draws <= last:
            raise ValueError(f"draws={draws} must be from 1 to last={last}.")
        self.last, self.draws = last, draws

    def __call__(self, num_steps: int) -> list[Window]:
        _enough(num_steps, self.last)
        steps = (num_steps - self.last + torch.randperm(self.last)[: self.draws]).sort().values.tolist()
        return [Window(step, step + 1) for step in steps]


class LastK(StepPolicy):
    """The last k steps in one chain: DRaFT-K (Clark et al. 2024)."""

    def __init__(self, k: int = 1) -> None:
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        self.k = k

    def __call__(self, num_steps: int) -> list[Window]:
        _enough(num_steps, self.k)
        return [Window(num_steps - self.k, num_steps)]


class RandomTruncation(StepPolicy):
    """From a random step among the last `last` to the end in one chain: AlignProp (Prabhudesai et al. 2023)."""

    def __init__(self, last: int = 40) -> None:
        if last < 1:
            raise ValueError(f"last={last} must be at least 1.")
        self.last = last

    def __call__(self, num_steps: int) -> list[Window]:
        _enough(num_steps, self.last)
        return [Window(num_steps - 1 - int(torch.randint(self.last, ())), num_steps)]


def _enough(num_steps: int, needed: int) -> None:
    if num_steps < needed:
        raise ValueError(f"the generator takes {num_steps} steps (generator.num_steps), the policy needs {needed}.")
