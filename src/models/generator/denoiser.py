"""Training a generator by noise prediction: from nothing, or to a style of pictures by LoRA.

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
from src.figures.images import draw_pictures
from src.models.generator.tuner import Tuner, squared


class Denoiser(Tuner):
    """A generator of ad pictures, trained to predict the noise in the latents of pictures from prompt and outline.

    Args:
        generator: what is trained; `src.diffusion.fresh.fresh_generator` for one that starts from nothing.
        trainable: "all" (text encoder, UNet, ControlNet), "unet", "controlnet", "unet_lora" or "controlnet_lora".
        prompt_dropout: share of rows with the generator's negative prompt in the place of their own, for
            classifier-free guidance; edge_dropout: share with no outline.
        min_snr: gamma of min-SNR weighting (Hang et al. 2023), None: all timesteps count alike.
        flip: share of rows with left and right swapped.
        kept_latents: pictures whose latents are kept in the CPU's memory (4 KiB each at 16 x 16 x 4), so that they are
            encoded once; a picture and its mirror image count as two.
        shown: pictures in the sample sheet.
        rank, ema, lr, weight_decay, warmup, schedule: see `Tuner`.
    """

    fields = frozenset({"image", "product", "prompt"})
    targets = frozenset({"image"})
    about: ClassVar = {
        "use": "Painting backgrounds around products like those of its training data; tuning it with a reward.",
        "limits": "It knows the pictures below and no others: no photographs, no prompts of other words.",
        "load": "from src.diffusion.generator import load_generator\n\n"
        'generator = load_generator("path/of/this/folder")  # in diffusers: controlnet_conditioning_scale=1.0',
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
        self.register_buffer("alpha_bars", generator.scheduler.alphas_cumprod.float().clone(), persistent=False)

    alpha_bars: Tensor  # (timesteps,)

    def forward(self, noisy: Tensor, t: Tensor, prompts: list[str], edges: Tensor) -> Tensor:
        """What the UNet predicts (noise or v) of noisy latents (batch, channels, h, w) at timesteps t (batch,)."""
        return self.net.predict(noisy, t, self.net.words(prompts), edges)

    def loss(self, clean: Tensor, noise: Tensor, t: Tensor, prompts: list[str], edges: Tensor) -> Tensor:
        """Weighted mean square of what is predicted against what is true, (batch,)."""
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
        silent = (torch.rand(size) < self.prompt_dropout).tolist()
        prompts = [
            self.net.negative_prompt if quiet else prompt for quiet, prompt in zip(silent, batch["prompt"], strict=True)
        ]
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
        """The pictures' latents, left and right swapped where `flip` says so."""
        names = list(zip(keys, flip, strict=True))
        if new := [row for row, name in enumerate(names) if name not in self.kept]:
            chosen = torch.stack([images[row].flip(-1) if flip[row] else images[row] for row in new])
            rows = chosen.split(1 if self.kept_latents else len(chosen))  # kept ones must not tell of their neighbours
            fresh = dict(zip([names[row] for row in new], torch.cat([*map(self.net.latents, rows)]), strict=True))
        else:
            fresh = {}
        clean = torch.stack([fresh[name] if name in fresh else self.kept[name].to(images) for name in names])
        self.kept |= {name: fresh[name].cpu() for name in list(fresh)[: max(0, self.kept_latents - len(self.kept))]}
        return clean

    def evaluation_step(self, batch: Batch, split: str) -> None:
        """The loss at timesteps and with noise that depend on the key alone."""
        size = len(batch["key"])
        clean = self.net.latents(batch["image"])
        noise = keyed_noise(0, batch["key"], clean.shape[1:]).to(clean)
        steps = [
            int(torch.randint(len(self.alpha_bars), (), generator=seeded_generator(1, key))) for key in batch["key"]
        ]
        t = torch.tensor(steps, device=clean.device)
        loss = self.loss(clean, noise, t, batch["prompt"], outline(batch["product"])).mean()
        self.log(f"{split}/loss", loss, batch_size=size, sync_dist=True)

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws `samples.png`: test products on backgrounds as their prompts ask for, not chosen."""
        pictures, prompts = [], []
        for batch in data.batches("test", self.device, shuffled=True):
            pictures.append(self.net.sample(self.net.encode(batch)).cpu())
            prompts += batch["prompt"]
            if len(prompts) >= self.shown:
                break
        return [draw_pictures(folder / "samples.png", torch.cat(pictures)[: self.shown], prompts[: self.shown])]
