"""A small autoencoder with residual pixel-unshuffle shortcuts (Chen et al. 2024, "DC-AE", arXiv 2410.10733).

In diffusers' Stable Diffusion pipelines it takes the place of an AutoencoderTiny. This file imports only diffusers and
torch and is saved with pipelines, so that `from_pretrained(folder, trust_remote_code=True)` loads them without this
project.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_dc import Decoder, Encoder
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor


class ResidualAutoencoder(ModelMixin, ConfigMixin):
    """Encoder and decoder of `diffusers.AutoencoderDC` without attention, with the interface of AutoencoderTiny.

    Each latent channel has mean 0 and standard deviation 1 over the images of `normalize`. All layers are local, so the
    network can be trained on crops.

    Args:
        block_out_channels: widths, from the resolution of the image down; each level halves the size.
        layers_per_block: residual blocks per level; 0 at the first: the network starts and ends at half the size, which
            is faster.
        latent_channels: a divisor of the last width.
        scaling_factor: read by pipelines; 1, because the latents are normalized.
    """

    _supports_gradient_checkpointing = True
    _gradient_checkpointing_func: Any  # set by `enable_gradient_checkpointing`

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        block_out_channels: Sequence[int] = (16, 32, 64, 128),
        layers_per_block: Sequence[int] = (0, 1, 2, 2),
        latent_channels: int = 8,
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        widths, layers = tuple(block_out_channels), tuple(layers_per_block)
        if len(widths) != len(layers) or len(widths) < 2 or 0 in layers[1:]:
            raise ValueError(
                f"layers_per_block={layers} must have as many values, at least two, as block_out_channels={widths}; "
                "only the first may be 0."
            )
        if widths[-1] % latent_channels:
            raise ValueError(f"latent_channels={latent_channels} must divide the last of block_out_channels={widths}.")
        sizes = {"block_out_channels": widths, "layers_per_block": layers, "qkv_multiscales": ((),) * len(widths)}
        self.encoder = Encoder(in_channels, latent_channels, **sizes, downsample_block_type="pixel_unshuffle")
        self.decoder = Decoder(in_channels, latent_channels, **sizes, upsample_block_type="interpolate")
        self.register_buffer("mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("deviation", torch.ones(latent_channels, 1, 1))
        self.gradient_checkpointing = False  # of the decoder as a whole

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """The latents (batch, channels, h, w) of images in [-1, 1]; deterministic."""
        latents = (self.encoder(x) - self.mean) / self.deviation
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """The images of latents, in [-1, 1] but not clipped; deterministic."""
        latents = (z * self.deviation + self.mean).to(z.dtype)  # the buffers stay float32 if only weights are cast
        if self.gradient_checkpointing and torch.is_grad_enabled():
            sample = self._gradient_checkpointing_func(self.decoder, latents)
        else:
            sample = self.decoder(latents)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        return self.decode(self.encode(sample, return_dict=False)[0], return_dict)

    @torch.no_grad()
    def normalize(self, mean: Tensor, deviation: Tensor) -> None:
        """Changes the latents from this mean and standard deviation, both (channels,), to 0 and 1.

        Raises ValueError for a channel that is constant or not finite.
        """
        if not (deviation > 0).all() or not torch.stack([mean, deviation]).isfinite().all():
            raise ValueError(f"the latents have mean {mean.tolist()} and standard deviation {deviation.tolist()}.")
        self.mean += mean.to(self.mean)[:, None, None] * self.deviation
        self.deviation *= deviation.to(self.deviation)[:, None, None]
