"""Pictures as a generator paints them: the domain in which a reward that tunes it has to be at home."""

import torch
from torch import Tensor

from src.data.batch import Batch
from src.data.transform import Transform
from src.diffusion.generator import Generator
from src.diffusion.late_steps import late
from src.diffusion.noise import seeded_generator


class Repaint(Transform):
    """Pictures (batch, 3, height, width) in [0, 1] that a generator has noised a little and estimated again.

    Through the VAE, to the noise of one of the last `share` of the denoising steps, back by the guided estimate x0-hat,
    and decoded, with the product pasted: what RFFT shows to a reward, made of a picture whose label is known. What is
    to be seen in it stays; texture is the generator's. The noise is a function of (seed, key); a batch goes through one
    step, a function of the seed and its first key.

    Raises ValueError if `share` is not above 0 and at most 1.
    """

    fields = frozenset({"image", "product", "prompt"})
    makes = frozenset({"image"})

    def __init__(self, generator: Generator, share: float = 0.25) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share={share} of the steps must be above 0 and at most 1.")
        self.generator, self.last = generator.requires_grad_(False).eval(), late(generator.num_steps, share)

    @torch.no_grad()
    def forward(self, batch: Batch, makes: frozenset[str], seed: int) -> dict[str, Tensor]:
        painter = self.generator
        i = painter.num_steps - 1 - int(torch.randint(self.last, (), generator=seeded_generator(seed, batch["key"][0])))
        conditions, a = painter.encode(batch, seed), painter.alpha_bars[i]
        x = a**0.5 * painter.latents(batch["image"]) + (1 - a) ** 0.5 * conditions.noise
        clean = painter.estimate(x, painter.guide(*painter.noise(x, i, conditions)), i)
        return {"image": painter.picture(clean, conditions)}
