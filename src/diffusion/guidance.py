"""Guidance by the gradient of a reward (classifier guidance, Dhariwal & Nichol 2021, arXiv 2105.05233)."""

from collections.abc import Callable

import torch
from torch import Tensor

from src.build import loadable
from src.data.batch import Batch
from src.diffusion.generator import Conditions, Generator
from src.rewards.base import Reward
from src.runtime.finite import require_finite


@loadable
class RewardGuidance:
    """Subtracts scale * sqrt(1 - a) * g from the noise estimate, g the gradient of the reward in the latents.

    The reward scores the image of x0-hat. The noise estimate counts as constant, so that no gradient runs through the
    UNet: g is the gradient in x0-hat over sqrt(a), a = alpha_bar.

    Args:
        reward: any.
        scale: 0 guides nothing.
        normalize: g has the norm of the noise estimate, in each image, over sqrt(1 - a); scale is then the share of the
            noise estimate by which it is changed, for any reward and resolution.
        start, stop: shares of the steps between which it guides; early x0-hat are too blurred to be scored.

    Raises ValueError for another object than a reward, a negative scale, and start and stop that are no such shares.
    """

    def __init__(
        self, reward: Reward, scale: float = 0.1, normalize: bool = True, start: float = 0.25, stop: float = 1.0
    ) -> None:
        if not isinstance(reward, Reward):
            raise ValueError(
                f"guidance needs a reward, not {type(reward).__name__}; choose one by guidance.reward=NAME."
            )
        if not 0 <= start <= stop <= 1:
            raise ValueError(
                f"start={start} and stop={stop} must be shares of the steps, the first not above the second."
            )
        if scale < 0:
            raise ValueError(f"scale={scale} must not be negative.")
        self.reward, self.scale, self.normalize, self.start, self.stop = reward, scale, normalize, start, stop

    def steer(
        self, generator: Generator, conditions: Conditions, batch: Batch
    ) -> Callable[[Tensor, Tensor, int], Tensor]:
        """What `Generator.sample` takes as `steer`; `batch` has the fields that the reward reads."""
        return lambda x, eps, i: self.guided(generator, x, eps, i, conditions, batch)

    def guided(
        self, generator: Generator, x: Tensor, eps: Tensor, i: int, conditions: Conditions, batch: Batch
    ) -> Tensor:
        """The guided noise estimate at step i, for latents x (batch, channels, h, w).

        Raises ValueError with the keys of the images whose gradient has NaN or infinity.
        """
        if not self.scale or not self.start <= i / generator.num_steps < self.stop:
            return eps
        a = generator.alpha_bars[i]
        with torch.enable_grad():
            x0 = generator.estimate(x, eps, i).detach().requires_grad_()
            value = self.reward(generator.image(x0, conditions), {name: batch[name] for name in self.reward.fields})
            (gradient,) = torch.autograd.grad(value.value.sum(), x0)
        require_finite(gradient, f"step {i}, gradient of {type(self.reward).__name__}", batch["key"])
        if self.normalize:
            size = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
            push = gradient * (eps.flatten(1).norm(dim=1) / size).view(-1, 1, 1, 1)
        else:
            push = gradient * ((1 - a) / a) ** 0.5
        return eps - self.scale * push
