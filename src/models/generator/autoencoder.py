"""Trains an autoencoder for latent diffusion (Rombach et al. 2022, arXiv 2112.10752)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import retrieve_latents
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.utils import save_image

from src.data.batch import Batch
from src.diffusion.loading import autoencoder_of
from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.runtime.finite import require_finite
from src.runtime.system import System


def edge_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical image gradients of images (batch, 3, h, w)."""
    d = a - b
    return (d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()) / 2


def scaled_difference(a: Tensor, b: Tensor, scales: int) -> Tensor:
    """Mean absolute difference + `edge_difference`, averaged over images halved 1 to `scales` times; 0 without any."""
    parts = []
    for _ in range(scales):
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        parts.append((a - b).abs().mean() + edge_difference(a, b))
    return torch.stack(parts).mean() if parts else a.new_zeros(())


def random_crops(images: Tensor, side: int) -> Tensor:
    """A random square of `side` px of each image (batch, 3, h, w); whole images if `side` is 0 or not smaller."""
    height, width = images.shape[-2:]
    if not 0 < side < min(height, width):
        return images
    top = torch.randint(height - side + 1, (len(images),)).tolist()
    left = torch.randint(width - side + 1, (len(images),)).tolist()
    return torch.stack([x[:, i : i + side, j : j + side] for x, i, j in zip(images, top, left, strict=True)])


class Autoencoder(System):
    """An autoencoder for latent diffusion, small by default, which downsamples by 8.

    Loss: mean absolute difference + `edge_weight` * `edge_difference` + `scale_weight` * `scaled_difference` with two
    scales + `kl_weight` * KL divergence from a standard normal, summed over the latents; only a pretrained
    AutoencoderKL has the last term. A share `products` of the images is replaced by the product on white, because that
    is what the generator encodes.

    Args:
        pretrained: folder or hub id of an AutoencoderKL ("stabilityai/sd-vae-ft-mse"), AutoencoderTiny
            ("madebyollin/taesd") or ResidualAutoencoder; None: train a ResidualAutoencoder from scratch.
        decoder_only: keep the encoder and the scale of the latents of a pretrained one, so that generators trained on
            its latents can use the result.
        block_out_channels, layers_per_block, latent_channels: see `ResidualAutoencoder`.
        noise: standard deviation of the noise on the latents in training, in units of the standard deviation of each
            channel over the batch. The decoder learns to tolerate errors of the denoiser, and larger latents do not
            help.
        crop: side in px of the random crops it is trained on; 0: whole images.
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
        block_out_channels: Sequence[int] = (16, 32, 64, 128),
        layers_per_block: Sequence[int] = (0, 1, 2, 2),
        latent_channels: int = 8,
        edge_weight: float = 1.0,
        scale_weight: float = 0.0,
        kl_weight: float = 1e-6,
        noise: float = 0.0,
        crop: int = 0,
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
        if pretrained:
            self.net = autoencoder_of(pretrained)
        else:
            self.net = ResidualAutoencoder(
                block_out_channels=tuple(block_out_channels),
                layers_per_block=tuple(layers_per_block),
                latent_channels=latent_channels,
            )
        cell = 2 ** (len(self.net.config["block_out_channels"]) - 1)
        if crop < 0 or crop % cell:
            raise ValueError(f"crop={crop} must be 0 or a positive multiple of {cell} px.")
        self.decoder_only = decoder_only
        for name, net in self.net.named_children():
            if decoder_only and name in ("encoder", "quant_conv"):
                net.requires_grad_(False)
        self.edge_weight, self.scale_weight, self.kl_weight = edge_weight, scale_weight, kl_weight
        self.noise, self.crop, self.products = noise, crop, products
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions of images (batch, 3, height, width) in [0, 1], from `latents`."""
        return self.net.decode(self.latents(images)).sample / 2 + 0.5

    def latents(self, images: Tensor) -> Tensor:
        """The latents of images (batch, 3, height, width) in [0, 1], not scaled; of an AutoencoderKL, their mean."""
        return retrieve_latents(self.net.encode(2 * images - 1), sample_mode="argmax")

    def training_step(self, batch: Batch) -> Tensor:
        images, product = batch["image"], batch["product"]
        alone = product[:, :3] * product[:, 3:] + 1 - product[:, 3:]
        swap = torch.rand(2, len(images), 1, 1, 1, device=self.device)
        images = torch.where(swap[0] < self.products, alone, images)
        images = torch.where(swap[1] < 0.5, images.flip(-1), images)
        images = random_crops(images, self.crop)
        coded = self.net.encode(2 * images - 1)
        latents = retrieve_latents(coded)
        kl = coded.latent_dist.kl().mean() if "latent_dist" in coded else latents.new_zeros(())
        if self.noise:
            deviation = latents.std(dim=(0, 2, 3), keepdim=True)
            latents = latents + self.noise * deviation * torch.randn_like(latents)
        decoded = self.net.decode(latents).sample / 2 + 0.5
        l1, edges = (decoded - images).abs().mean(), edge_difference(decoded, images)
        scales = scaled_difference(decoded, images, 2 if self.scale_weight else 0)
        loss = l1 + self.edge_weight * edges + self.scale_weight * scales + self.kl_weight * kl
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict({"train/l1": l1, "train/edges": edges, "train/kl": kl}, batch_size=len(images))
        return loss

    def evaluation_step(self, batch: Batch, split: str) -> None:
        images = batch["image"]
        decoded = require_finite(self(images), "decoded images", batch["key"]).clamp(0, 1)
        psnr = peak_signal_noise_ratio(decoded, images, 1.0, reduction="elementwise_mean", dim=(1, 2, 3))
        ssim: Any = structural_similarity_index_measure(decoded, images, data_range=1.0)
        values = {f"{split}/l1": (decoded - images).abs().mean(), f"{split}/psnr": psnr, f"{split}/ssim": ssim}
        self.log_dict(values, batch_size=len(images))

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Scales the latents of `batches` to a standard deviation of 1.

        The channels of a ResidualAutoencoder are normalized one by one, to mean 0 and standard deviation 1; all others
        get a scaling factor.
        """
        if self.decoder_only:
            return
        sums: list[Tensor] = []
        count = 0
        for batch in batches:
            latents = self.latents(batch["image"]).double()
            sums.append(torch.stack([latents.sum(dim=(0, 2, 3)), latents.square().sum(dim=(0, 2, 3))]))
            count += latents[:, 0].numel()
        mean, squares = torch.stack(sums).sum(dim=0) / count
        if isinstance(self.net, ResidualAutoencoder):
            self.net.normalize(mean, (squares - mean**2).sqrt())
        else:
            self.net.register_to_config(scaling_factor=float((squares.mean() - mean.mean() ** 2) ** -0.5))

    def save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the network in the diffusers layout."""
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
