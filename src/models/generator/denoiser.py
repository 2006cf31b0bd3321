"""Trains a generator by noise prediction: from scratch, or by LoRA to adapt it to a data set.

Ho et al. 2020 (arXiv 2006.11239), in the latents of Rombach et al. 2022, with a ControlNet (Zhang et al. 2023).
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from src.data.batch import Batch
from src.diffusion.canny import outline
from src.diffusion.generator import Generator
from src.diffusion.noise import keyed_noise, seeded_generator
from src.figures.images import draw_images
from src.models.generator.tuner import Tuner, squared
from src.runtime.finite import require_finite


class Denoiser(Tuner):
    """A generator of ad images, trained to predict the noise in image latents from prompt and product outline.

    Args:
        generator: the generator to train; `src.diffusion.fresh.fresh_generator` for training from scratch.
        prompt_dropout: share of rows whose prompt is replaced by the negative prompt, for classifier-free guidance;
            edge_dropout: share of rows without outline.
        min_snr: gamma of min-SNR weighting (Hang et al. 2023); None: all timesteps have the same weight.
        flip: share of rows that are flipped horizontally.
        kept_latents: number of latents cached in CPU memory (4 KiB each at 16 x 16 x 4); an image and its mirror image
            count as two.
        shown: number of images in `samples.png`.
        trainable, rank, ema, lr, weight_decay, warmup, schedule: see `Tuner`.
    """

    fields = frozenset({"image", "product", "prompt"})
    targets = frozenset({"image"})
    about: ClassVar = {
        "use": "Generating backgrounds around products like those in the training data; fine-tuning with a reward.",
        "limits": "It is trained on the data below only: no photographs, no prompts with other words.",
    }

    def __init__(
        self,
        generator: Generator,
        trainable: str = "unet_lora",
        rank: int = 8,
        prompt_dropout: float = 0.1,
        edge_dropout: float = 0.0,
        min_snr: float | None = None,
        flip: float = 0.5,
        kept_latents: int = 0,
        shown: int = 24,
        ema: float | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        schedule: str = "cosine",
    ) -> None:
        super().__init__(generator, trainable, rank, ema, lr, weight_decay, warmup, schedule)
        self.save_hyperparameters(ignore=["generator"])
        for name, share in (("prompt_dropout", prompt_dropout), ("edge_dropout", edge_dropout), ("flip", flip)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be in [0, 1].")
        self.prompt_dropout, self.edge_dropout, self.min_snr, self.flip = prompt_dropout, edge_dropout, min_snr, flip
        self.kept_latents, self.shown = kept_latents, shown
        self.kept: dict[tuple[str, bool], Tensor] = {}
        self.alpha_bars: Tensor  # (timesteps,)
        self.register_buffer("alpha_bars", generator.scheduler.alphas_cumprod.float().clone(), persistent=False)

    def forward(self, noisy: Tensor, t: Tensor, prompts: list[str], edges: Tensor) -> Tensor:
        """The prediction (noise or v) for noisy latents (batch, channels, h, w) at timesteps t (batch,)."""
        return self.net.predict(noisy, t, self.net.words(prompts), edges)

    def loss(self, clean: Tensor, noise: Tensor, t: Tensor, prompts: list[str], edges: Tensor) -> Tensor:
        """The weighted mean squared error of the prediction, (batch,)."""
        a = self.alpha_bars[t][:, None, None, None]
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        v = self.net.kind == "v_prediction"
        true = a.sqrt() * noise - (1 - a).sqrt() * clean if v else noise
        error = squared(self(noisy, t, prompts, edges) - true)
        if self.min_snr is None:
            return error
        snr = (a / (1 - a)).flatten()
        return error * snr.clamp_max(self.min_snr) / (snr + 1 if v else snr)

    def training_step(self, batch: Batch) -> Tensor:
        size, image = len(batch["key"]), batch["image"]
        flip, no_edges = torch.rand(size) < self.flip, torch.rand(size) < self.edge_dropout
        dropped = zip((torch.rand(size) < self.prompt_dropout).tolist(), batch["prompt"], strict=True)
        prompts = [self.net.negative_prompt if drop else prompt for drop, prompt in dropped]
        clean = self.clean(batch["key"], flip.tolist(), image)
        edges = outline(batch["product"])
        edges = torch.where(flip.to(edges.device)[:, None, None, None], edges.flip(-1), edges)
        edges = edges * ~no_edges.to(edges.device)[:, None, None, None]
        t = torch.randint(len(self.alpha_bars), (size,), device=image.device)
        loss = self.loss(clean, torch.randn_like(clean), t, prompts, edges).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        return loss

    @torch.no_grad()
    def clean(self, keys: list[str], flip: list[bool], images: Tensor) -> Tensor:
        """The latents of the images, flipped horizontally where `flip` is set; cached."""
        names, fresh = list(zip(keys, flip, strict=True)), {}
        if new := [row for row, name in enumerate(names) if name not in self.kept]:
            chosen = torch.stack([images[row].flip(-1) if flip[row] else images[row] for row in new])
            rows = chosen.split(1 if self.kept_latents else len(chosen))  # cached latents must not depend on the batch
            fresh = dict(zip([names[row] for row in new], torch.cat([*map(self.net.latents, rows)]), strict=True))
        clean = torch.stack([fresh[name] if name in fresh else self.kept[name].to(images) for name in names])
        self.kept |= {name: fresh[name].cpu() for name in list(fresh)[: max(0, self.kept_latents - len(self.kept))]}
        return clean

    def evaluation_step(self, batch: Batch, split: str) -> None:
        """Logs the loss at timesteps and with noise that depend on the key only."""
        keys, clean = batch["key"], self.net.latents(batch["image"])
        noise = keyed_noise(0, keys, clean.shape[1:]).to(clean)
        t = torch.stack([torch.randint(len(self.alpha_bars), (), generator=seeded_generator(1, key)) for key in keys])
        loss = self.loss(clean, noise, t.to(clean.device), batch["prompt"], outline(batch["product"]))
        self.log(f"{split}/loss", require_finite(loss, "losses", keys).mean(), batch_size=len(keys))

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Writes `samples.png`: images generated for the first test products, not selected."""
        images, prompts = [], []
        for batch in data.batches("test", self.device, shuffled=True):
            images.append(self.net.sample(self.net.encode(batch)).cpu())
            prompts += batch["prompt"]
            if len(prompts) >= self.shown:
                break
        return [draw_images(folder / "samples.png", torch.cat(images)[: self.shown], prompts[: self.shown])]
