"""The generator of ad backgrounds: text encoder, VAE, UNet, Canny ControlNet and DDIM.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418. All parts
are classes of diffusers and transformers, the VAE also a `ResidualAutoencoder`, in the diffusers folder layout, so that
a tiny generator, Stable Diffusion 1.5 and a user's fine-tuned model run the same code, and diffusers' pipelines load
the tuned models.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import (
    StableDiffusionControlNetInpaintPipeline,
    retrieve_latents,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel

from src.data.batch import Batch
from src.diffusion import residual_autoencoder
from src.diffusion.canny import outline
from src.diffusion.noise import keyed_noise
from src.diffusion.parts import check_parts
from src.diffusion.prompts import LONG, text_states
from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.runtime.device import in_own_precision

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "controlnet", "scheduler")
SETTINGS = ("num_steps", "guidance_scale", "control_scale", "negative_prompt", "dilation", "backdrop", "long_prompts")
LEAST = 1e-12  # lower bound of alpha_bar, so that x0 remains determined


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of images, computed once and without gradient. h, w: size of the latents."""

    text: Tensor  # (2 * batch, words, width): states of the negative prompts, then of the prompts
    edges: Tensor  # (batch, 3, height, width), 0 or 1: outline of the product
    product: Tensor  # (batch, 4, height, width) in [0, 1]: RGBA at its place on the canvas
    latents: Tensor  # (batch, channels, h, w): scaled latents of the product
    background: Tensor  # (batch, 1, h, w), 0 or 1: the region to generate; I - M in the paper
    noise: Tensor  # (batch, channels, h, w): x_T


class Generator(nn.Module):
    """Generates backgrounds around products with classifier-free guidance, an inpainting blend and DDIM (eta 0).

    Args:
        num_steps: denoising steps T; step index i counts from 0, the noisiest, to T - 1.
        guidance_scale: s in uncond + s (text - uncond).
        control_scale: scale of the ControlNet's residuals; 0: no ControlNet.
        negative_prompt: text of the unconditional branch; the ControlNet is active in both branches.
        dilation: side in px of the square by which the generated region is dilated into the product (the authors: 20);
            the product is pasted with its own alpha at the end.
        backdrop: gray value in [0, 1] behind the product when it is encoded to latents.
        long_prompts: "cut", "windows" or "refuse", for prompts with more tokens than the tokenizer's length.
    """

    tokenizer: Any  # the type annotations of diffusers and transformers do not fit
    text_encoder: Any
    vae: Any
    unet: Any
    controlnet: Any
    scheduler: Any

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL | AutoencoderTiny | ResidualAutoencoder,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        scheduler: DDIMScheduler,
        num_steps: int = 40,
        guidance_scale: float = 7.5,
        control_scale: float = 1.0,
        negative_prompt: str = "",
        dilation: int = 0,
        backdrop: float = 1.0,
        long_prompts: str = "cut",
    ) -> None:
        super().__init__()
        if long_prompts not in LONG:
            raise ValueError(f"long_prompts={long_prompts}: choose from {', '.join(LONG)}.")
        if num_steps < 1 or dilation < 0:
            raise ValueError(f"num_steps={num_steps} must be at least 1, and dilation={dilation} at least 0.")
        check_parts(tokenizer, text_encoder, vae, unet, controlnet, scheduler)
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.text_encoder, self.vae, self.unet, self.controlnet = text_encoder, vae, unet, controlnet
        for net in (unet, controlnet):
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # fastest for convolutions
        self.num_steps, self.guidance_scale, self.control_scale = num_steps, guidance_scale, control_scale
        self.negative_prompt, self.dilation, self.backdrop = negative_prompt, dilation, backdrop
        self.long_prompts = long_prompts
        self.kind = scheduler.config.get("prediction_type", "epsilon")
        self.origin = ""  # folder or hub id it was loaded from
        scheduler.set_timesteps(num_steps)
        self.timesteps: list[int] = scheduler.timesteps.tolist()
        last = scheduler.final_alpha_cumprod.double().reshape(1)
        levels = torch.cat([scheduler.alphas_cumprod.double()[self.timesteps], last]).clamp_min(LEAST)
        self.alpha_bars: list[float] = levels.tolist()  # T + 1 values, increasing

    @property
    def size(self) -> int:
        """Side in px of the images it was trained on."""
        return int(self.unet.config["sample_size"]) * self.cell

    @property
    def cell(self) -> int:
        """Side in px of the image area per latent; image sizes are multiples of it."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor besides the networks, tokenizer and scheduler."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def sampling(self) -> dict[str, Any]:
        """What, besides the weights, the sampled images depend on: `settings` and the scheduler's configuration."""
        config = self.scheduler.config
        return self.settings | {
            "scheduler": {name: config[name] for name in sorted(config) if not name.startswith("_")}
        }

    @torch.no_grad()
    def encode(self, batch: Batch, seed: int | Sequence[int] = 0) -> Conditions:
        """The conditions of a batch with key, prompt and product; the noise of an image depends on (seed, key) only.

        `seed`: one for all rows, or one per row.
        """
        product = batch["product"]
        if product.ndim != 4 or product.shape[1] != 4:
            raise ValueError(f"product must be (batch, 4, height, width), got {tuple(product.shape)}.")
        if product.shape[2] % self.cell or product.shape[3] % self.cell:
            raise ValueError(
                f"products of {product.shape[3]} x {product.shape[2]} px: the size must be a multiple of "
                f"{self.cell} px; this generator was trained on {self.size} px."
            )
        if (longest := max(product.shape[2:])) != self.size:
            warnings.warn(f"products of {longest} px: this generator was trained on {self.size} px.", stacklevel=2)
        colors, alpha = product[:, :3], product[:, 3:]
        latents = self.latents(colors * alpha + self.backdrop * (1 - alpha))
        background = (alpha < 0.5).to(latents)
        if self.dilation:
            size = 2 * (self.dilation // 2) + 1
            background = F.max_pool2d(background, size, stride=1, padding=size // 2)
        background = F.interpolate(background, size=latents.shape[-2:])
        noise = keyed_noise(seed, batch["key"], latents.shape[1:]).to(latents)
        names = ["the negative prompt"] * len(product) + [f"the prompt of {key}" for key in batch["key"]]
        text = self.words([self.negative_prompt] * len(product) + list(batch["prompt"]), names)
        return Conditions(text, outline(product).to(latents), product, latents, background, noise)

    @torch.no_grad()
    def masked(self, batch: Batch, images: Tensor, mask: Tensor, seed: int | Sequence[int] = 0) -> Conditions:
        """The conditions under which the region `mask` of `images` is generated again, and the rest stays.

        batch: as for `encode`, of which the product's outline and the prompt are used. images: (batch, 3, height,
        width) in [0, 1]. mask: bool (batch, 1, height, width); latents that it touches are generated.
        """
        kept = 1 - mask.to(images)
        touched = F.max_pool2d(mask.to(images), self.cell)
        return replace(
            self.encode(batch, seed),
            product=torch.cat([images, kept], dim=1),
            latents=self.latents(images),
            background=touched,
        )

    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents (batch, channels, h, w) of images (batch, 3, height, width) in [0, 1], in their dtype."""
        with in_own_precision(self.vae):
            coded = retrieve_latents(self.vae.encode((2 * images - 1).to(self.vae.dtype)), sample_mode="argmax")
        return coded.to(images.dtype) * self.vae.config["scaling_factor"]

    def words(self, prompts: Sequence[str], names: Sequence[str] = ()) -> Tensor:
        """Hidden states of the text encoder (prompts, words, width); `names`: of the prompts, see `text_states`."""
        return text_states(self.tokenizer, self.text_encoder, prompts, names, self.long_prompts)

    def predict(self, x: Tensor, t: Tensor, text: Tensor, edges: Tensor) -> Tensor:
        """The UNet's prediction (epsilon or v) for latents x (batch, channels, h, w) at timesteps t, in x's dtype."""
        noisy, text, down, middle = x.to(self.unet.dtype), text.to(self.unet.dtype), None, None
        if self.control_scale:
            edges = edges.to(self.controlnet.dtype)
            control: dict[str, Any] = {"controlnet_cond": edges, "conditioning_scale": self.control_scale}
            down, middle = self.controlnet(noisy, t, encoder_hidden_states=text, **control, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(noisy, t, encoder_hidden_states=text, **residuals, return_dict=False)[0].to(x.dtype)

    def noise(self, x: Tensor, i: int, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(text, uncond): the noise predicted for latents x at step i with and without the prompt, in one call.

        In x's dtype, or float64 where alpha_bar is so small that float32 would not determine x0.
        """
        edges = torch.cat([conditions.edges] * 2)
        uncond, text = self._epsilon(torch.cat([x, x]), i, conditions.text, edges).chunk(2)
        return text, uncond

    def noise_of(self, branch: str, x: Tensor, i: int, conditions: Conditions) -> Tensor:
        """One of the two predictions, "text" or "uncond", at half the cost of `noise`."""
        return self._epsilon(x, i, conditions.text.chunk(2)[("uncond", "text").index(branch)], conditions.edges)

    def _epsilon(self, x: Tensor, i: int, text: Tensor, edges: Tensor) -> Tensor:
        t = torch.full((), self.timesteps[i], device=x.device)  # torch.tensor would make the CPU wait for the GPU
        predicted = self.predict(x, t, text, edges)
        if self.kind == "epsilon":
            return predicted
        a = self.alpha_bars[i]
        x = x.double() if a < 1e-4 and x.device.type != "mps" else x  # mps has no float64: the error of x0-hat is 0.06
        return a**0.5 * predicted + (1 - a) ** 0.5 * x

    def guide(self, text: Tensor, uncond: Tensor) -> Tensor:
        """uncond + s (text - uncond)."""
        return uncond + self.guidance_scale * (text - uncond)

    def estimate(self, x: Tensor, eps: Tensor, i: int) -> Tensor:
        """x0-hat at step i: (x - sqrt(1 - a) eps) / sqrt(a) with a = alpha_bar."""
        a = self.alpha_bars[i]
        return ((x - (1 - a) ** 0.5 * eps) / a**0.5).to(x)

    def step(self, x: Tensor, eps: Tensor, i: int, conditions: Conditions) -> Tensor:
        """The latents after DDIM step i; the product's region has the product's latents at the same noise level."""
        b = self.alpha_bars[i + 1]
        moved = b**0.5 * self.estimate(x, eps, i) + (1 - b) ** 0.5 * eps.to(x)
        known = conditions.latents
        if i + 1 < self.num_steps:
            known = b**0.5 * known + (1 - b) ** 0.5 * conditions.noise
        return conditions.background * moved + (1 - conditions.background) * known

    def rollout(
        self,
        conditions: Conditions,
        stop: int,
        start: int = 0,
        x: Tensor | None = None,
        steer: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    ) -> Tensor:
        """The latents before step `stop`, starting from x at step `start`, or from the initial noise.

        steer: changes the noise estimate, given (x, estimate, step index).
        """
        x = conditions.noise if x is None else x
        with self._embedded(conditions) as embedded:
            own = in_own_precision(self.unet, self.controlnet)
            for i in range(start, stop):
                with own:
                    eps = self.guide(*self.noise(x, i, embedded))
                x = self.step(x, steer(x, eps, i) if steer else eps, i, conditions)
        return x

    @contextmanager
    def _embedded(self, conditions: Conditions) -> Iterator[Conditions]:
        """Embeds the edges once instead of at every step."""
        embedding = self.controlnet.controlnet_cond_embedding
        try:
            edges = embedding(conditions.edges.to(self.controlnet.dtype))
            self.controlnet.controlnet_cond_embedding = nn.Identity()
            yield replace(conditions, edges=edges)
        finally:
            self.controlnet.controlnet_cond_embedding = embedding

    def image(self, latents: Tensor, conditions: Conditions) -> Tensor:
        """Images (batch, 3, height, width) in [0, 1] of clean latents: x_0, or an estimate of it.

        The product's region has the product's latents, as in the last step; after decoding, the product is pasted with
        its own alpha. Infinite pixels become NaN.
        """
        blended = conditions.background * latents + (1 - conditions.background) * conditions.latents
        with in_own_precision(self.vae):
            decoded = self.vae.decode((blended / self.vae.config["scaling_factor"]).to(self.vae.dtype)).sample
        image = decoded.to(latents.dtype) / 2 + 0.5
        image = image.clamp(0, 1).where(image.isfinite(), torch.nan)  # an overflow must not become white or black
        alpha = conditions.product[:, 3:]
        return image * (1 - alpha) + conditions.product[:, :3] * alpha

    @torch.no_grad()
    def sample(self, conditions: Conditions, steer: Callable[[Tensor, Tensor, int], Tensor] | None = None) -> Tensor:
        """Generated images (batch, 3, height, width) in [0, 1]; `steer` as in `rollout`."""
        return self.image(self.rollout(conditions, self.num_steps, steer=steer), conditions)

    def save(self, folder: str | Path) -> None:
        """Writes the folder of a diffusers ControlNet inpainting pipeline.

        If the VAE is a ResidualAutoencoder, its code is included: `from_pretrained(folder, trust_remote_code=True)`.
        """
        parts: dict[str, Any] = {name: getattr(self, name) for name in PARTS} | {"feature_extractor": None}
        pipeline = StableDiffusionControlNetInpaintPipeline(**parts, safety_checker=None, requires_safety_checker=False)  # pyright: ignore
        pipeline.save_pretrained(folder)
        if isinstance(self.vae, ResidualAutoencoder):
            code, index = Path(residual_autoencoder.__file__), Path(folder) / "model_index.json"
            shutil.copyfile(code, Path(folder) / "vae" / code.name)
            named = json.loads(index.read_text(encoding="utf-8")) | {"vae": [code.stem, ResidualAutoencoder.__name__]}
            index.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
