"""The painter of ad backgrounds: text encoder, VAE, UNet, canny ControlNet and DDIM; its verbs are the equations of

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418. The parts
are diffusers' and transformers' own classes in diffusers' own folder layout, so that a tiny generator, Stable Diffusion
1.5 with a ControlNet and a user's fine-tune run the same lines, and diffusers' pipelines open what is tuned here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from src.data.batch import Batch

CANNY = 100, 200  # thresholds of the edge detector


@dataclass(frozen=True)
class Conditions:
    """All that a batch of pictures is painted from; computed once, without gradient. h, w: of latents."""

    text: Tensor  # (2 * batch, words, width): of the negative prompt, then of the prompt
    edges: Tensor  # (batch, 3, height, width), 0 or 1: the product's outline
    product: Tensor  # (batch, 4, height, width) in [0, 1]: RGBA where it stands
    latents: Tensor  # (batch, channels, h, w): the product's, scaled
    background: Tensor  # (batch, 1, h, w), 0 or 1: where there is something to paint; I - M in the paper
    noise: Tensor  # (batch, channels, h, w): x_T


class Generator(nn.Module):
    """Paints backgrounds around products by classifier-free guidance, an inpainting blend and DDIM (eta 0).

    Args:
        num_steps: denoising steps T; step index i counts from 0, the noisiest, to T - 1.
        guidance_scale: s in uncond + s (text - uncond).
        control_scale: by which the ControlNet's residuals are multiplied.
        negative_prompt: the text of the unconditional branch; the ControlNet is active in both.
        dilation: pixels by which the painted region reaches into the product; the product is pasted whole in the end.
        backdrop: grey in [0, 1] behind the product when it is encoded to latents.
    """

    tokenizer: Any  # these types of diffusers and transformers say too much or too little
    text_encoder: Any
    vae: Any
    unet: Any
    controlnet: Any
    scheduler: Any

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        scheduler: DDIMScheduler,
        num_steps: int = 40,
        guidance_scale: float = 7.5,
        control_scale: float = 1.0,
        negative_prompt: str = "",
        dilation: int = 0,
        backdrop: float = 1.0,
    ) -> None:
        super().__init__()
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the scheduler's prediction_type is {kind}; epsilon and v_prediction are known.")
        if unet.config.get("in_channels") != vae.config.get("latent_channels"):
            raise ValueError(
                f"the UNet takes {unet.config.get('in_channels')} channels, the VAE gives "
                f"{vae.config.get('latent_channels')}; a UNet made for inpainting (9 channels) is not supported."
            )
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.text_encoder, self.vae, self.unet, self.controlnet = text_encoder, vae, unet, controlnet
        self.num_steps, self.guidance_scale, self.control_scale = num_steps, guidance_scale, control_scale
        self.negative_prompt, self.dilation, self.backdrop = negative_prompt, dilation, backdrop
        self.kind = kind
        scheduler.set_timesteps(num_steps)
        self.timesteps: list[int] = scheduler.timesteps.tolist()
        known = scheduler.alphas_cumprod.double()
        last = scheduler.final_alpha_cumprod.double().reshape(1)
        self.alpha_bars: list[float] = torch.cat([known[self.timesteps], last]).tolist()  # T + 1, rising

    @torch.no_grad()
    def encode(self, batch: Batch, seed: int = 0) -> Conditions:
        """The conditions of a batch with key, prompt and product; a picture's noise depends on (seed, key) alone."""
        product = batch["product"]
        if product.ndim != 4 or product.shape[1] != 4:
            raise ValueError(f"product must be (batch, 4, height, width), got {tuple(product.shape)}.")
        weight = self.vae.dtype
        colours, alpha = product[:, :3], product[:, 3:]
        shown = colours * alpha + self.backdrop * (1 - alpha)
        latents = self.vae.encode((2 * shown - 1).to(weight)).latent_dist.mode() * self.vae.config["scaling_factor"]
        background = (alpha < 0.5).to(latents)
        if self.dilation:
            size = 2 * (self.dilation // 2) + 1
            background = F.max_pool2d(background, size, stride=1, padding=size // 2)
        background = F.interpolate(background, size=latents.shape[-2:])
        noise = torch.stack([self._start(seed, key, latents.shape[1:]) for key in batch["key"]]).to(latents)
        text = self.words([self.negative_prompt] * len(product) + list(batch["prompt"]))
        return Conditions(text, outline(product).to(latents), product, latents, background, noise)

    def words(self, prompts: Sequence[str]) -> Tensor:
        """The text encoder's states (prompts, words, width)."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.text_encoder.device))[0]

    def _start(self, seed: int, key: str, shape: Sequence[int]) -> Tensor:
        number = int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "little") >> 1
        return torch.randn(*shape, generator=torch.Generator().manual_seed(number))

    def noise(self, x: Tensor, i: int, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(text, uncond): what the UNet predicts at step i for latents x with and without the prompt, in one call."""
        double = torch.cat([x, x])
        edges = torch.cat([conditions.edges, conditions.edges])
        t = torch.tensor(self.timesteps[i], device=x.device)
        down, middle = self.controlnet(
            double,
            t,
            encoder_hidden_states=conditions.text,
            controlnet_cond=edges,
            conditioning_scale=self.control_scale,
            return_dict=False,
        )
        uncond, text = self.unet(
            double,
            t,
            encoder_hidden_states=conditions.text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].chunk(2)
        return text, uncond

    def guide(self, text: Tensor, uncond: Tensor) -> Tensor:
        """uncond + s (text - uncond)."""
        return uncond + self.guidance_scale * (text - uncond)

    def estimate(self, x: Tensor, predicted: Tensor, i: int) -> Tensor:
        """x0-hat at step i: (x - sqrt(1 - a) eps) / sqrt(a), a = alpha_bar (paper's x0 formula)."""
        a = self.alpha_bars[i]
        if self.kind == "v_prediction":
            return a**0.5 * x - (1 - a) ** 0.5 * predicted
        return (x - (1 - a) ** 0.5 * predicted) / a**0.5

    def step(self, x: Tensor, predicted: Tensor, i: int, conditions: Conditions) -> Tensor:
        """The latents after step i: DDIM, then the product's latents, noised as far, in the product's place."""
        a, b = self.alpha_bars[i], self.alpha_bars[i + 1]
        clean = self.estimate(x, predicted, i)
        eps = (x - a**0.5 * clean) / (1 - a) ** 0.5
        moved = b**0.5 * clean + (1 - b) ** 0.5 * eps
        known = conditions.latents
        if i + 1 < self.num_steps:
            known = b**0.5 * known + (1 - b) ** 0.5 * conditions.noise
        return conditions.background * moved + (1 - conditions.background) * known

    def rollout(self, conditions: Conditions, stop: int) -> Tensor:
        """The latents that step `stop` starts from."""
        x = conditions.noise * self.scheduler.init_noise_sigma
        for i in range(stop):
            x = self.step(x, self.guide(*self.noise(x, i, conditions)), i, conditions)
        return x

    def picture(self, latents: Tensor, conditions: Conditions) -> Tensor:
        """Latents decoded to pictures (batch, 3, height, width) in [0, 1], the product pasted with its own alpha."""
        decoded = self.vae.decode(latents / self.vae.config["scaling_factor"]).sample
        painted = (decoded.float() / 2 + 0.5).clamp(0, 1)
        alpha = conditions.product[:, 3:]
        return painted * (1 - alpha) + conditions.product[:, :3] * alpha

    @torch.no_grad()
    def sample(self, conditions: Conditions) -> Tensor:
        """Finished pictures (batch, 3, height, width) in [0, 1]."""
        return self.picture(self.rollout(conditions, self.num_steps), conditions)

    def save(self, folder: str | Path) -> None:
        """Writes diffusers' folder of a ControlNet inpainting pipeline."""
        StableDiffusionControlNetInpaintPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            controlnet=self.controlnet,
            scheduler=self.scheduler,
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        ).save_pretrained(folder)


def outline(product: Tensor) -> Tensor:
    """Canny edges, 0 or 1, (batch, 3, height, width), of products (batch, 4, height, width) in [0, 1] over black."""
    shown = (product[:, :3] * product[:, 3:] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    edges = np.stack([cv2.Canny(np.ascontiguousarray(picture), *CANNY) for picture in shown])
    return torch.from_numpy(edges / 255).to(product)[:, None].expand(-1, 3, -1, -1)


def load_generator(folder: str | Path, controlnet: str | Path | None = None, **settings: Any) -> Generator:
    """The generator of a folder or hub id in diffusers' layout; `settings` are `Generator`'s.

    `controlnet`: a folder or hub id of its own; None: the subfolder of that name. The scheduler's configuration is read
    as DDIM's, whatever scheduler it was written by.
    """
    place = str(folder)
    scheduler: Any = DDIMScheduler.from_pretrained(place, subfolder="scheduler")
    return Generator(
        CLIPTokenizer.from_pretrained(place, subfolder="tokenizer"),
        CLIPTextModel.from_pretrained(place, subfolder="text_encoder"),
        AutoencoderKL.from_pretrained(place, subfolder="vae"),
        UNet2DConditionModel.from_pretrained(place, subfolder="unet"),
        ControlNetModel.from_pretrained(str(controlnet))
        if controlnet
        else ControlNetModel.from_pretrained(place, subfolder="controlnet"),
        scheduler,
        **settings,
    )
