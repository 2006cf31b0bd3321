"""The VAE between pictures and latents (Rombach et al. 2022, arXiv 2112.10752): diffusers' net and its training."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from src.data.batch import Batch
from src.diffusion.generator import part_of
from src.runtime.system import System


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the steps from pixel to pixel, across and down, of pictures (batch, 3, h, w)."""
    d = a - b
    return (d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()) / 2


def begin_short(net: nn.Module) -> None:
    """Lets every residual branch of a net begin at zero and what remains pass channels on as they are.

    A short run so learns much more than from diffusers' own beginning (cf. Goyal et al. 2017, arXiv 1706.02677, 5.1).
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
    """A small VAE for latent diffusion, an eighth of the picture's side by default, in diffusers' own folder layout.

    Loss: mean absolute difference, `edge_weight` times that of the pixel steps, `kl_weight` times the Kullback-Leibler
    divergence from a standard normal, a sum over the latents. Some pictures of a batch, the share `products`, are the
    product alone on white, which is what a generator that keeps the product encodes.

    Args:
        pretrained: folder or hub id with weights ("stabilityai/sd-vae-ft-mse"), or None: from nothing (`begin_short`).
        decoder_only: of a pretrained one, leave the encoder and the latents' scale as they are, so that a generator
            which was trained on these latents gains too.
        block_out_channels, layers_per_block, latent_channels, norm_num_groups: of `diffusers.AutoencoderKL`.
        lr, weight_decay, warmup: see `src.runtime.schedules.adamw`.
    """

    fields = frozenset({"image", "product"})
    targets = frozenset({"image"})
    own_layout = True
    monitor = ("val/psnr", "max")
    card: ClassVar = {
        "use": "The first and last part of a generator of pictures like those of its training data.",
        "limits": "It knows the pictures below and no others; fine texture and thin lines come out soft.",
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
        make: Any = AutoencoderKL
        depth = len(block_out_channels)
        self.net: Any = (
            part_of(AutoencoderKL, pretrained)
            if pretrained
            else make(
                down_block_types=("DownEncoderBlock2D",) * depth,
                up_block_types=("UpDecoderBlock2D",) * depth,
                block_out_channels=tuple(block_out_channels),
                layers_per_block=layers_per_block,
                latent_channels=latent_channels,
                norm_num_groups=norm_num_groups,
            )
        )
        if not pretrained:
            begin_short(self.net)
        if decoder_only and not pretrained:
            raise ValueError("decoder_only=true needs pretrained.")
        self.decoder_only = decoder_only
        for net in (self.net.encoder, self.net.quant_conv) if decoder_only else ():
            net.requires_grad_(False)
        self.edge_weight, self.kl_weight, self.products = edge_weight, kl_weight, products
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (batch, 3, height, width) in [0, 1] there and back, without chance."""
        return self.net(2 * pictures - 1).sample / 2 + 0.5

    def training_step(self, batch: Batch) -> Tensor:
        pictures, product = batch["image"], batch["product"]
        alone = product[:, :3] * product[:, 3:] + 1 - product[:, 3:]
        swap = torch.rand(2, len(pictures), 1, 1, 1, device=self.device)
        pictures = torch.where(swap[0] < self.products, alone, pictures)
        pictures = torch.where(swap[1] < 0.5, pictures.flip(-1), pictures)
        latents = self.net.encode(2 * pictures - 1).latent_dist
        again = self.net.decode(latents.sample()).sample / 2 + 0.5
        l1, edges, kl = (again - pictures).abs().mean(), edge_difference(again, pictures), latents.kl().mean()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        self.log("train/loss", loss, prog_bar=True, batch_size=len(pictures))
        self.log_dict({"train/l1": l1, "train/edges": edges, "train/kl": kl}, batch_size=len(pictures))
        return loss

    def evaluation_step(self, batch: Batch, split: str) -> None:
        pictures = batch["image"]
        again = self(pictures).clamp(0, 1)
        values: dict[str, Any] = {
            "l1": (again - pictures).abs().mean(),
            "psnr": peak_signal_noise_ratio(
                again, pictures, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3)
            ),
            "ssim": structural_similarity_index_measure(again, pictures, data_range=1.0),
        }
        self.log_dict({f"{split}/{name}": v for name, v in values.items()}, batch_size=len(pictures), sync_dist=True)

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Sets the scaling factor, by which latents get a standard deviation of 1 over `batches`."""
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
        """diffusers' files of an AutoencoderKL, beside the checkpoint folder's own."""
        nn.Module.to(self.net, dtype).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
        nn.Module.to(self.net, torch.float32)

    def assets(self, folder: Path) -> dict[str, Any]:
        """The folder itself as that of the weights."""
        return {"pretrained": "./"}

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws `reconstructions.png`: eight test pictures over their reconstructions."""
        from torchvision.utils import save_image

        folder.mkdir(parents=True, exist_ok=True)
        pictures: list[Tensor] = []
        for batch in data.batches("test", self.device, shuffled=True):
            pictures += batch["image"]
            if len(pictures) >= 8:
                break
        shown = torch.stack(pictures[:8])
        with torch.inference_mode():
            sheet = torch.cat([shown, self(shown).clamp(0, 1)])
        save_image(sheet, folder / "reconstructions.png", nrow=len(shown), padding=2)
        return [folder / "reconstructions.png"]
