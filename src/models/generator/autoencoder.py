"""Trains a VAE for latent diffusion (Rombach et al. 2022, arXiv 2112.10752), a diffusers AutoencoderKL."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.utils import save_image

from src.data.batch import Batch
from src.diffusion.generator import part_of
from src.runtime.finite import require_finite
from src.runtime.system import System


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical image gradients of images (batch, 3, h, w)."""
    d = a - b
    return (d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()) / 2


def identity_init(net: nn.Module) -> None:
    """Initializes residual branches to zero and the remaining convolutions to the identity.

    Short runs reach much better results than with diffusers' default (cf. Goyal et al. 2017, arXiv 1706.02677, 5.1).
    """
    straight: list[nn.Module | None] = []
    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)  # pyright: ignore[reportArgumentType]
            straight.append(module.conv_shortcut)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)  # pyright: ignore[reportOptionalSubscript, reportArgumentType]
        elif isinstance(module, Downsample2D | Upsample2D):
            straight.append(module.conv)
    for module in straight:
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)


class Autoencoder(System):
    """A VAE for latent diffusion, small by default, which downsamples by 8.

    Loss: mean absolute difference + `edge_weight` * `edge_difference` + `kl_weight` * KL divergence from a standard
    normal, summed over the latents. A share `products` of the images is replaced by the product on white, because that
    is what the generator encodes.

    Args:
        pretrained: folder or hub id with weights ("stabilityai/sd-vae-ft-mse"); None: train from scratch.
        decoder_only: keep the encoder and the scaling factor of a pretrained VAE, so that generators trained on its
            latents can use the result.
        block_out_channels, layers_per_block, latent_channels, norm_num_groups: see `diffusers.AutoencoderKL`.
        lr, weight_decay, warmup: see `src.runtime.schedules.adamw`.
    """

    fields = frozenset({"image", "product"})
    targets = frozenset({"image"})
    own_layout = True
    monitor = ("val/psnr", "max")
    card: ClassVar = {
        "use": "Encoder and decoder of a generator of images like those in the training data.",
        "limits": "It is trained on the data below only; fine texture and thin lines are blurred.",
    }

    def __init__(
        self,
        pretrained: str | None = None,
        decoder_only: bool = False,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        edge_weight: float = 1.0,
        kl_weight: float = 1e-6,
        products: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 <= products <= 1:
            raise ValueError(f"products={products} must be in [0, 1].")
        if decoder_only and not pretrained:
            raise ValueError("decoder_only=true needs pretrained.")
        make, depth = cast(Any, AutoencoderKL), len(block_out_channels)
        if pretrained:
            self.net = part_of(AutoencoderKL, pretrained)
        else:
            self.net = make(
                down_block_types=("DownEncoderBlock2D",) * depth, up_block_types=("UpDecoderBlock2D",) * depth,
                block_out_channels=tuple(block_out_channels), layers_per_block=layers_per_block,
                latent_channels=latent_channels, norm_num_groups=norm_num_groups,
            )  # fmt: skip
            identity_init(self.net)
        self.decoder_only = decoder_only
        for net in (self.net.encoder, self.net.quant_conv) if decoder_only else ():
            net.requires_grad_(False)
        self.edge_weight, self.kl_weight, self.products = edge_weight, kl_weight, products
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions of images (batch, 3, height, width) in [0, 1] from the mean of the latents."""
        return self.net(2 * images - 1).sample / 2 + 0.5

    def training_step(self, batch: Batch) -> Tensor:
        images, product = batch["image"], batch["product"]
        alone = product[:, :3] * product[:, 3:] + 1 - product[:, 3:]
        swap = torch.rand(2, len(images), 1, 1, 1, device=self.device)
        images = torch.where(swap[0] < self.products, alone, images)
        images = torch.where(swap[1] < 0.5, images.flip(-1), images)
        latents = self.net.encode(2 * images - 1).latent_dist
        decoded = self.net.decode(latents.sample()).sample / 2 + 0.5
        l1, edges, kl = (decoded - images).abs().mean(), edge_difference(decoded, images), latents.kl().mean()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict({"train/l1": l1, "train/edges": edges, "train/kl": kl}, batch_size=len(images))
        return loss

    def evaluation_step(self, batch: Batch, split: str) -> None:
        images = batch["image"]
        decoded = require_finite(self(images), "decoded images", batch["key"]).clamp(0, 1)
        psnr = peak_signal_noise_ratio(decoded, images, 1.0, reduction="elementwise_mean", dim=(1, 2, 3))
        ssim: Any = structural_similarity_index_measure(decoded, images, data_range=1.0)
        values = {f"{split}/l1": (decoded - images).abs().mean(), f"{split}/psnr": psnr, f"{split}/ssim": ssim}
        self.log_dict(values, batch_size=len(images), sync_dist=True)

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Sets the scaling factor, so that the latents of `batches` have a standard deviation of 1."""
        if self.decoder_only:
            return
        total, squares, count = 0.0, 0.0, 0
        for batch in batches:
            latents = self.net.encode(2 * batch["image"] - 1).latent_dist.mode().double()
            total, squares = total + float(latents.sum()), squares + float(latents.square().sum())
            count += latents.numel()
        deviation = (squares / count - (total / count) ** 2) ** 0.5
        self.net.register_to_config(scaling_factor=1 / deviation)

    def save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the files of a diffusers AutoencoderKL."""
        nn.Module.to(self.net, dtype).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        nn.Module.to(self.net, torch.float32)

    def assets(self, folder: Path) -> dict[str, Any]:
        """The folder itself, as the source of the weights."""
        return {"pretrained": "./"}

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Writes `reconstructions.png`: eight test images above their reconstructions."""
        folder.mkdir(parents=True, exist_ok=True)
        images: list[Tensor] = []
        for batch in data.batches("test", self.device, shuffled=True):
            images += batch["image"]
            if len(images) >= 8:
                break
        shown = torch.stack(images[:8])
        with torch.inference_mode():
            sheet = torch.cat([shown, self(shown).clamp(0, 1)])
        save_image(sheet, folder / "reconstructions.png", nrow=len(shown), padding=2)
        return [folder / "reconstructions.png"]
