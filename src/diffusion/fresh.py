"""Generators to be trained from scratch, and newly initialized ControlNets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from src.diffusion.generator import Generator
from src.diffusion.loading import autoencoder_of, unet_of
from src.diffusion.stable_diffusion import SCHEDULE
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
    """A generator with random weights, except the VAE.

    Args:
        vae: folder or hub id of a trained VAE in the diffusers layout.
        text_encoder: folder with a CLIP tokenizer and a CLIPTextConfig.
        unet: arguments of `diffusers.UNet2DConditionModel`; the width of the cross attention is the text encoder's.
        edge_channels: channels of the ControlNet's edge embedding; each layer after the first halves the size.
        scheduler: arguments of `diffusers.DDIMScheduler` that differ from Stable Diffusion 1.5.
        seed: seed of the weights; settings: see `Generator`.
    """
    place = str(located(text_encoder))
    ddim: Any = DDIMScheduler
    words: Any = CLIPTextConfig.from_pretrained(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet2DConditionModel(**{**unet, "cross_attention_dim": words.hidden_size})
        return Generator(
            CLIPTokenizer.from_pretrained(place),
            CLIPTextModel(words),
            autoencoder_of(vae),
            net,
            controlnet_of(net, edge_channels),
            ddim(**{**SCHEDULE, **(scheduler or {})}),
            **settings,
        )


def fresh_controlnet(
    folder: str | Path, edge_channels: Sequence[int] = (16, 32, 96, 256), seed: int = 0
) -> ControlNetModel:
    """A ControlNet initialized from the UNet of a folder or file (`controlnet_of`)."""
    net = unet_of(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return controlnet_of(net, edge_channels)


def controlnet_of(unet: UNet2DConditionModel, edge_channels: Sequence[int]) -> ControlNetModel:
    """A ControlNet initialized from the first half of a UNet, with zero output (Zhang et al. 2023).

    With PyTorch's default initialization each convolution and SiLU more than halves a small signal: after seven of them
    the outline has a relative effect of 1e-6, and it hardly grows in 1800 training steps.
    """
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=tuple(edge_channels))
    embedding: Any = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks):
        nn.init.normal_(layer.weight, std=1.7 / layer.weight[0].numel() ** 0.5)  # SiLU halves small values
        nn.init.zeros_(layer.bias)
    return controlnet
