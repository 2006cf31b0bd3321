"""The generator of ad backgrounds: text encoder, VAE, UNet, Canny ControlNet and DDIM; its methods are the equations of

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418. The parts
are diffusers' and transformers' own classes in diffusers' own folder layout, so that a tiny generator, Stable Diffusion
1.5 with a ControlNet and a user's fine-tune run the same code, and diffusers' pipelines load what is tuned here.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from src.build import loadable
from src.data.batch import Batch
from src.diffusion.canny import outline
from src.diffusion.noise import keyed_noise
from src.runtime.checkpoint import CONFIG, located, model_config

SETTINGS = ("num_steps", "guidance_scale", "control_scale", "negative_prompt", "dilation", "backdrop")
LEAST = 1e-12  # of alpha_bar: below it the noise in the latents would not determine x0


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of images; computed once, without gradient. h, w: of latents."""

    text: Tensor  # (2 * batch, words, width): of the negative prompt, then of the prompt
    edges: Tensor  # (batch, 3, height, width), 0 or 1: the product's outline
    product: Tensor  # (batch, 4, height, width) in [0, 1]: RGBA at its place on the canvas
    latents: Tensor  # (batch, channels, h, w): the product's, scaled
    background: Tensor  # (batch, 1, h, w), 0 or 1: the region to generate; I - M in the paper
    noise: Tensor  # (batch, channels, h, w): x_T


class Generator(nn.Module):
    """Generates backgrounds around products by classifier-free guidance, an inpainting blend and DDIM (eta 0).

    Args:
        num_steps: denoising steps T; step index i counts from 0, the noisiest, to T - 1.
        guidance_scale: s in uncond + s (text - uncond).
        control_scale: factor of the ControlNet's residuals; 0: no ControlNet.
        negative_prompt: the text of the unconditional branch; the ControlNet is active in both.
        dilation: side in px of the square by which the generated region is dilated, so that it extends half as far into
            the product (the authors: 20); the product is pasted undilated at the end.
        backdrop: grey in [0, 1] behind the product when it is encoded to latents.
    """

    tokenizer: Any  # the types of diffusers and transformers are too wide or too narrow
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
        if num_steps < 1 or dilation < 0:
            raise ValueError(f"num_steps={num_steps} must be at least 1, dilation={dilation} not negative.")
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the scheduler's prediction_type is {kind}; epsilon and v_prediction are known.")
        if scheduler.config.get("rescale_betas_zero_snr") and kind == "epsilon":
            raise ValueError("the scheduler's rescale_betas_zero_snr needs prediction_type v_prediction.")
        if unet.config.get("in_channels") != vae.config.get("latent_channels"):
            raise ValueError(
                f"the UNet takes {unet.config.get('in_channels')} channels, the VAE gives "
                f"{vae.config.get('latent_channels')}; a UNet made for inpainting (9 channels) is not supported."
            )
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.text_encoder, self.vae, self.unet, self.controlnet = text_encoder, vae, unet, controlnet
        for net in (unet, controlnet):
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # fastest for convolutions
        self.num_steps, self.guidance_scale, self.control_scale = num_steps, guidance_scale, control_scale
        self.negative_prompt, self.dilation, self.backdrop = negative_prompt, dilation, backdrop
        self.kind, self.origin = kind, ""  # the folder or hub id that it was loaded from
        scheduler.set_timesteps(num_steps)
        self.timesteps: list[int] = scheduler.timesteps.tolist()
        known = scheduler.alphas_cumprod.double()
        last = scheduler.final_alpha_cumprod.double().reshape(1)
        levels = torch.cat([known[self.timesteps], last]).clamp_min(LEAST)
        self.alpha_bars: list[float] = levels.tolist()  # T + 1, rising

    @property
    def size(self) -> int:
        """Side in px of the images that it was trained for."""
        return int(self.unet.config["sample_size"]) * self.cell

    @property
    def cell(self) -> int:
        """Side in px of a latent; the side of an image is a multiple of it."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor besides the networks, tokenizer and scheduler."""
        return {name: getattr(self, name) for name in SETTINGS}

    @torch.no_grad()
    def encode(self, batch: Batch, seed: int | Sequence[int] = 0) -> Conditions:
        """The conditions of a batch with key, prompt and product; the noise of an image depends on (seed, key) alone.

        `seed`: one for all, or one for each row.
        """
        product = batch["product"]
        if product.ndim != 4 or product.shape[1] != 4:
            raise ValueError(f"product must be (batch, 4, height, width), got {tuple(product.shape)}.")
        if product.shape[2] % self.cell or product.shape[3] % self.cell:
            raise ValueError(
                f"products of {product.shape[3]} x {product.shape[2]} px: this generator needs multiples of "
                f"{self.cell} px, best {self.size}."
            )
        if max(product.shape[2:]) != self.size:
            told = f"products of {max(product.shape[2:])} px: this generator was trained for {self.size} px."
            warnings.warn(told, stacklevel=2)
        colours, alpha = product[:, :3], product[:, 3:]
        latents = self.latents(colours * alpha + self.backdrop * (1 - alpha))
        background = (alpha < 0.5).to(latents)
        if self.dilation:
            size = 2 * (self.dilation // 2) + 1
            background = F.max_pool2d(background, size, stride=1, padding=size // 2)
        background = F.interpolate(background, size=latents.shape[-2:])
        noise = keyed_noise(seed, batch["key"], latents.shape[1:]).to(latents)
        text = self.words([self.negative_prompt] * len(product) + list(batch["prompt"]))
        return Conditions(text, outline(product).to(latents), product, latents, background, noise)

    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents (batch, channels, h, w) of images (batch, 3, height, width) in [0, 1]; of their dtype."""
        coded = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist.mode()
        return coded.to(images.dtype) * self.vae.config["scaling_factor"]

    def words(self, prompts: Sequence[str]) -> Tensor:
        """The text encoder's states (prompts, words, width)."""
        length = self.tokenizer.model_max_length
        whole = self.tokenizer(list(prompts), verbose=False).input_ids
        if cut := [prompt for prompt, ids in zip(prompts, whole, strict=True) if len(ids) > length]:
            warnings.warn(f"{cut[0]!r} is truncated to {length} tokens.", stacklevel=2)
        ids = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.text_encoder.device))[0]

    def predict(self, x: Tensor, t: Tensor, text: Tensor, edges: Tensor) -> Tensor:
        """The UNet's prediction (epsilon or v) for latents x (batch, channels, h, w) at timesteps t; of x's dtype."""
        noisy, text, edges = x.to(self.unet.dtype), text.to(self.unet.dtype), edges.to(self.controlnet.dtype)
        down, middle = (
            self.controlnet(
                noisy,
                t,
                encoder_hidden_states=text,
                controlnet_cond=edges,
                conditioning_scale=self.control_scale,
                return_dict=False,
            )
            if self.control_scale
            else (None, None)
        )
        return self.unet(
            noisy,
            t,
            encoder_hidden_states=text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].to(x.dtype)

    def noise(self, x: Tensor, i: int, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(text, uncond): the noise predicted in latents x at step i with and without the prompt, in one call.

        Of x's dtype, but float64 where alpha_bar is tiny: there the last digits determine x0.
        """
        edges = torch.cat([conditions.edges] * 2)
        uncond, text = self._epsilon(torch.cat([x, x]), i, conditions.text, edges).chunk(2)
        return text, uncond

    def noise_of(self, branch: str, x: Tensor, i: int, conditions: Conditions) -> Tensor:
        """One of the two, "text" or "uncond", at half the cost of `noise`."""
        return self._epsilon(x, i, conditions.text.chunk(2)[("uncond", "text").index(branch)], conditions.edges)

    def _epsilon(self, x: Tensor, i: int, text: Tensor, edges: Tensor) -> Tensor:
        predicted = self.predict(x, torch.tensor(self.timesteps[i], device=x.device), text, edges)
        if self.kind == "epsilon":
            return predicted
        a = self.alpha_bars[i]
        x = x.double() if a < 1e-4 and x.device.type != "mps" else x  # mps has no float64: x0-hat errs by 0.06
        return a**0.5 * predicted + (1 - a) ** 0.5 * x

    def guide(self, text: Tensor, uncond: Tensor) -> Tensor:
        """uncond + s (text - uncond)."""
        return uncond + self.guidance_scale * (text - uncond)

    def estimate(self, x: Tensor, eps: Tensor, i: int) -> Tensor:
        """x0-hat at step i: (x - sqrt(1 - a) eps) / sqrt(a), a = alpha_bar (paper's x0 formula)."""
        a = self.alpha_bars[i]
        return ((x - (1 - a) ** 0.5 * eps) / a**0.5).to(x)

    def step(self, x: Tensor, eps: Tensor, i: int, conditions: Conditions) -> Tensor:
        """The latents after step i: DDIM, with the product's region replaced by its latents at the same noise level."""
        b = self.alpha_bars[i + 1]
        moved = b**0.5 * self.estimate(x, eps, i) + (1 - b) ** 0.5 * eps.to(x)
        known = conditions.latents
        if i + 1 < self.num_steps:
            known = b**0.5 * known + (1 - b) ** 0.5 * conditions.noise
        return conditions.background * moved + (1 - conditions.background) * known

    def rollout(self, conditions: Conditions, stop: int, start: int = 0, x: Tensor | None = None) -> Tensor:
        """The latents before step `stop`, from x at step `start` or from the conditions' noise."""
        x = conditions.noise if x is None else x
        with self._embedded(conditions) as conditions:
            for i in range(start, stop):
                x = self.step(x, self.guide(*self.noise(x, i, conditions)), i, conditions)
        return x

    @contextmanager
    def _embedded(self, conditions: Conditions) -> Iterator[Conditions]:
        """In this context the edges are embedded once instead of at every step."""
        embedding = self.controlnet.controlnet_cond_embedding
        try:
            edges = embedding(conditions.edges.to(self.controlnet.dtype))
            self.controlnet.controlnet_cond_embedding = nn.Identity()
            yield replace(conditions, edges=edges)
        finally:
            self.controlnet.controlnet_cond_embedding = embedding

    def picture(self, latents: Tensor, conditions: Conditions) -> Tensor:
        """Images (batch, 3, height, width) in [0, 1] of clean latents: x_0, or an estimate of it.

        The product's latents replace those in its region, as in the last step; after decoding, the product is pasted
        with its own, undilated alpha.
        """
        whole = conditions.background * latents + (1 - conditions.background) * conditions.latents
        decoded = self.vae.decode((whole / self.vae.config["scaling_factor"]).to(self.vae.dtype)).sample
        image = (decoded.to(latents.dtype) / 2 + 0.5).clamp(0, 1)
        alpha = conditions.product[:, 3:]
        return image * (1 - alpha) + conditions.product[:, :3] * alpha

    @torch.no_grad()
    def sample(self, conditions: Conditions) -> Tensor:
        """Generated images (batch, 3, height, width) in [0, 1]."""
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


@loadable
def load_generator(
    folder: str | Path, controlnet: str | Path | ControlNetModel | None = None, **settings: Any
) -> Generator:
    """The generator of a folder or hub id in diffusers' layout, float32; `settings` are `Generator`'s.

    Settings that are not given, or None, are those in a local folder's `config.yaml`, if a run of this project wrote
    it, and else `Generator`'s own.
    `controlnet`: itself; or a folder or hub id, for a folder that has none: a folder's own was trained with it. The
    scheduler's configuration is read as DDIM's, whatever scheduler it was written by: betas and prediction type;
    without clipping, and with leading timesteps, as Stable Diffusion 1.5 is sampled, or trailing ones if the last is
    pure noise (rescale_betas_zero_snr; Lin et al. 2024, arXiv 2305.08891). Raises ValueError naming the folder and the
    part that is missing or cannot be read.
    """
    ddim: Any = DDIMScheduler
    noise = part_of(DDIMScheduler, folder, "scheduler").config
    spacing = "trailing" if noise["rescale_betas_zero_snr"] else "leading"
    plain = {"timestep_spacing": spacing, "clip_sample": False, "thresholding": False}
    edges: Any = controlnet
    if not isinstance(controlnet, ControlNetModel):
        own = not controlnet or has_controlnet(folder)
        edges = part_of(ControlNetModel, folder, "controlnet") if own else part_of(ControlNetModel, str(controlnet))
    known = model_config(folder).get("generator", {}) if (located(folder) / CONFIG).is_file() else {}
    known = {name: value for name, value in known.items() if name in SETTINGS}
    settings = known | {name: value for name, value in settings.items() if value is not None}
    generator = Generator(
        part_of(CLIPTokenizer, folder, "tokenizer"),
        part_of(CLIPTextModel, folder, "text_encoder"),
        part_of(AutoencoderKL, folder, "vae"),
        part_of(UNet2DConditionModel, folder, "unet"),
        edges,
        ddim.from_config(noise, **plain),
        **settings,
    )
    generator.origin = str(folder)
    return generator


def has_controlnet(folder: str | Path) -> bool:
    """Whether a folder or hub id has a ControlNet of its own."""
    try:
        ControlNetModel.load_config(str(located(folder)), subfolder="controlnet")
    except OSError:
        return False
    return True


def part_of(kind: Any, folder: str | Path, subfolder: str = "") -> Any:
    """What `kind`, a class of diffusers or transformers, reads from a folder or hub id; nets in float32.

    Weights that lie there as the variant "fp16" alone are taken too.
    """
    place, net = str(located(folder)), issubclass(kind, nn.Module)
    if Path(place).is_file():
        raise ValueError(
            f"{folder} is a file; a folder in diffusers' layout is needed, as "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) makes of a single file."
        )
    if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") != 1):  # a hub id is owner/name
        raise ValueError(f"there is no folder {folder}.")
    read: Any = kind.from_pretrained
    wide = {"dtype" if kind is CLIPTextModel else "torch_dtype": torch.float32}
    errors: list[Exception] = []
    for options in (wide, wide | {"variant": "fp16"}) if net else ({},):
        try:
            found = read(place, subfolder=subfolder, **options)
            break
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            errors.append(error)
    else:
        reason = " ".join(str(errors[0]).split())
        raise ValueError(f"{Path(place) / subfolder}: no {kind.__name__} can be read there: {reason}") from errors[0]
    if isinstance(found, ModelMixin) and Path(place).exists():
        found.register_to_config(_name_or_path="")  # a path of this machine has no place in what is saved
    return found
