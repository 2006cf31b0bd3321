"""Generators with random weights, except the VAE, and fresh ControlNets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from src.diffusion.generator import Generator, part_of
from src.runtime.checkpoint import located


def fresh_generator(
    vae: str | Path,
    text_encoder: str | Path,
    unet: Mapping[str, Any],
    edge_channels: Sequence[int] = (16, 32, 96, 256),
    scheduler: Mapping[str, Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Generator:
    """A generator with random weights, to be trained from scratch: `src.models.generator.denoiser`, part "all".

    Args:
        vae: folder or hub id of a trained one in diffusers' layout.
        text_encoder: folder with a CLIP tokenizer and a CLIPTextConfig.
        unet: arguments of `diffusers.UNet2DConditionModel`; the text encoder gives the width of the cross attention.
        edge_channels: of the ControlNet's layers from the edges to the latents' size; the ControlNet is else the UNet's
            first half. Each after the first halves the size.
        scheduler: arguments of `diffusers.DDIMScheduler` besides those of Stable Diffusion 1.5.
        seed: of the weights.
        settings: see `Generator`.
    """
    place = str(located(text_encoder))
    stable_diffusion = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    ddim: Any = DDIMScheduler
    words: Any = CLIPTextConfig.from_pretrained(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        painter = UNet2DConditionModel(**{**unet, "cross_attention_dim": words.hidden_size})
        return Generator(
            CLIPTokenizer.from_pretrained(place),
            CLIPTextModel(words),
            part_of(AutoencoderKL, vae),
            painter,
            controlnet_of(painter, edge_channels),
            ddim(**{**stable_diffusion, **(scheduler or {})}),
            **settings,
        )


def fresh_controlnet(
    folder: str | Path, edge_channels: Sequence[int] = (16, 32, 96, 256), seed: int = 0
) -> ControlNetModel:
    """A ControlNet initialized from the first half of a folder's UNet; its output is zero (Zhang et al. 2023).

    `src.models.generator.denoiser` trains it, part "controlnet". `edge_channels`, `seed`: see `fresh_generator`.
    """
    painter = part_of(UNet2DConditionModel, folder, "unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return controlnet_of(painter, edge_channels)


def controlnet_of(unet: UNet2DConditionModel, edge_channels: Sequence[int]) -> ControlNetModel:
    """A ControlNet initialized from the UNet's first half, with zero output, through which outlines propagate.

    With torch's own initial weights each convolution and SiLU passes on less than half of a small signal: after seven
    of them an outline moves the result by 1e-6 of it, and after 1800 steps of training still does.
    """
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(edge_channels))
    embedding: Any = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks):
        nn.init.normal_(layer.weight, std=1.7 / layer.weight[0].numel() ** 0.5)  # SiLU halves what is near 0
        nn.init.zeros_(layer.bias)
    return controlnet
