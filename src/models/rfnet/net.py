"""RFNet: the network that tells usable advertising images from four kinds of unusable ones.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.batch import PICTURES, Batch
from src.models.layers import PictureEncoder, resize
from src.models.rfnet.layers import FeatureFilter, TitleEncoder

INPUTS = ("product", "image", "depth", "saliency", "title")  # e_o, e_g, e_d, e_s, e_c
ENCODERS = {  # which pictures share an encoder
    "shared": {"product": "picture", "image": "picture", "depth": "picture", "saliency": "picture"},
    "paired": {"product": "picture", "image": "picture", "depth": "map", "saliency": "map"},
    "separate": {"product": "product", "image": "image", "depth": "depth", "saliency": "saliency"},
}


class RFNet(nn.Module):
    """Logits (batch, classes), float32, of a batch's `inputs`: float pictures in [0, 1] of any size, titles as str.

    f = SelfAttention(Concat(e_f, e_g, e_d, e_s)), pooled and classified. The title reaches the result through the
    product (`FeatureFilter`). Without a title e_f is e_o; without a product there is nothing to filter by, and the
    title's own tokens join the others. The arguments are `RFNetSystem`'s.
    """

    temperature: Tensor

    def __init__(
        self,
        num_classes: int,
        inputs: Sequence[str],
        image_encoder: str,
        encoder_options: Mapping[str, Any] | None,
        encoder_pretrained: bool,
        encoder_stage: int,
        encoders: str,
        image_size: int,
        map_size: int,
        unshuffle: int,
        grid: int | None,
        product_background: float,
        product_alpha: bool,
        text_encoder: str,
        text_options: Mapping[str, Any] | None,
        text_pretrained: bool,
        max_title_tokens: int,
        ordinal_numbers: bool,
        word_noise: float,
        width: int,
        num_heads: int,
        num_filters: int,
        num_fusion: int,
        feedforward: int,
        dropout: float,
        pooling: str,
    ) -> None:
        super().__init__()
        for value, name, choices in ((encoders, "encoders", tuple(ENCODERS)), (pooling, "pooling", ("mean", "cls"))):
            if value not in choices:
                raise ValueError(f"{name}={value}: choose one of {', '.join(choices)}.")
        if not inputs or set(inputs) - set(INPUTS) or len(set(inputs)) < len(inputs):
            raise ValueError(f"inputs={list(inputs)}: give some of {', '.join(INPUTS)}, each once.")
        if encoders == "shared" and map_size != image_size and set(inputs) & {"depth", "saliency"}:
            raise ValueError(f"encoders=shared takes one size, but image_size={image_size} and map_size={map_size}.")
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        self.pictures = tuple(name for name in self.inputs if name != "title")
        self.shares = {name: ENCODERS[encoders][name] for name in self.pictures}
        self.product_background, self.product_alpha = product_background, product_alpha
        self.encoders = nn.ModuleDict({
            share: PictureEncoder(
                image_encoder, width, 4 if product_alpha else 3,
                map_size if share in ("map", "depth", "saliency") else image_size,
                encoder_pretrained, encoder_options, encoder_stage, grid, unshuffle,
            )
            for share in dict.fromkeys(self.shares.values())
        })  # fmt: skip
        self.positions = nn.ParameterDict()  # place on the canvas and kind of picture at once
        for name in self.pictures:
            encoder: Any = self.encoders[self.shares[name]]
            self.positions[name] = nn.Parameter(0.1 * torch.randn(encoder.grid**2, width))
        if "title" in self.inputs:
            self.title = TitleEncoder(
                text_encoder, width, text_pretrained, text_options, max_title_tokens, ordinal_numbers, word_noise
            )
        if {"title", "product"} <= set(self.inputs):
            self.filters = nn.ModuleList(FeatureFilter(width, num_heads, dropout) for _ in range(num_filters))
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, width)) if pooling == "cls" else None
        self.fusion = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, feedforward, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_fusion)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, batch: Batch) -> Tensor:
        tokens = self.tokens(batch)
        padding = {name: e.new_zeros(e.shape[:2], dtype=torch.bool) for name, e in tokens.items()}
        if "title" in self.inputs:
            title, blank = self.title(batch["title"])
            if "product" in tokens:
                for layer in self.filters:
                    tokens["product"] = layer(tokens["product"], title, blank)
            else:
                tokens["title"], padding["title"] = title, blank
        x = torch.cat(list(tokens.values()), dim=1)  # (batch, tokens, width)
        blank = torch.cat(list(padding.values()), dim=1)  # (batch, tokens)
        if self.cls is not None:
            x, blank = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1), F.pad(blank, (1, 0))
        for layer in self.fusion:
            x = layer(x, src_key_padding_mask=blank if "title" in tokens else None)
        x = self.norm(x)
        if self.cls is not None:
            pooled = x[:, 0]
        else:
            pooled = x.masked_fill(blank[..., None], 0).sum(dim=1) / (~blank).sum(dim=1, keepdim=True)
        return self.classifier(pooled).float()

    def tokens(self, batch: Batch) -> dict[str, Tensor]:
        """e_o, e_g, e_d, e_s with their positions, each (batch, grid * grid, width)."""
        found: dict[str, Tensor] = {}
        for share, encoder in self.encoders.items():
            names = [name for name in self.pictures if self.shares[name] == share]
            found |= zip(names, encoder([self.prepared(name, batch) for name in names]), strict=True)
        return {name: found[name] + self.positions[name] for name in self.pictures}

    def prepared(self, name: str, batch: Batch) -> Tensor:
        """The picture with 3 channels, the product on its background; with `product_alpha` 4, the last its opacity.

        The opacity says of every picture where the product lies in it; it is 1 if the net does not see the product.
        """
        picture = batch[name]
        if picture.ndim != 4 or picture.shape[1] != PICTURES[name]:
            raise ValueError(f"{name} must be (batch, {PICTURES[name]}, height, width), got {tuple(picture.shape)}.")
        seen = "product" in self.inputs
        alpha = resize(batch["product"][:, 3:], picture.shape[-2:]) if seen else torch.ones_like(picture[:, :1])
        colours = picture[:, :3].expand(-1, 3, -1, -1)
        if name == "product":
            colours = colours * alpha + self.product_background * (1 - alpha)
        return torch.cat([colours, alpha.to(colours)], dim=1) if self.product_alpha else colours
