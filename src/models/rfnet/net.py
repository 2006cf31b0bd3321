"""RFNet: a network that classifies ad images as available, or by the reason why they are not.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.build import loadable
from src.data.batch import IMAGE_FIELDS, Batch
from src.models.layers import ImageEncoder, ImageEncoderSettings, resize
from src.models.rfnet.layers import FeatureFilter, TextEncoderSettings, TitleEncoder

INPUTS = ("product", "image", "depth", "saliency", "title")  # e_o, e_g, e_d, e_s, e_c


@loadable
@dataclass(frozen=True)
class FusionSettings:
    """Settings of feature filters, fusion and classifier.

    Args:
        num_filters, num_layers: N1 feature filters and N2 self-attention layers; feedforward: hidden width of these.
        pooling: the classifier reads the "mean" of the tokens or a "cls" token.
    """

    width: int = 384
    num_heads: int = 8
    num_filters: int = 1
    num_layers: int = 3
    feedforward: int = 1536
    dropout: float = 0.1
    pooling: str = "mean"


class RFNet(nn.Module):
    """Logits (batch, classes), float32, of the `inputs` of a batch: float images in [0, 1] of any size, and titles.

    f = SelfAttention(Concat(e_f, e_g, e_d, e_s)), pooled and classified. The title influences only the product tokens
    (`FeatureFilter`). Without a title e_f = e_o; without a product the title tokens are concatenated like those of an
    image. Arguments: see `RFNetSystem`.
    """

    temperature: Tensor

    def __init__(
        self,
        num_classes: int,
        inputs: Sequence[str],
        image_encoder: ImageEncoderSettings,
        map_encoder: ImageEncoderSettings | None,
        separate_encoders: bool,
        product_background: float,
        text_encoder: TextEncoderSettings | None,
        fusion: FusionSettings,
    ) -> None:
        super().__init__()
        if fusion.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling={fusion.pooling}: choose one of mean, cls.")
        if not inputs or set(inputs) - set(INPUTS) or len(set(inputs)) < len(inputs):
            raise ValueError(f"inputs={list(inputs)}: choose from {', '.join(INPUTS)}, each once.")
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        self.images = tuple(name for name in self.inputs if name != "title")
        self.product_background = product_background
        width, dropout = fusion.width, fusion.dropout
        maps = map_encoder or image_encoder
        settings = {"product": image_encoder, "image": image_encoder, "depth": maps, "saliency": maps}
        self.encoder_of: dict[str, str] = {}
        self.encoders = nn.ModuleDict()
        for name in self.images:
            shared = "picture" if settings[name] is image_encoder else "map"  # as in the shipped weights
            self.encoder_of[name] = encoder = name if separate_encoders else shared
            if encoder not in self.encoders:
                self.encoders[encoder] = ImageEncoder(settings[name], width)
        self.positions = nn.ParameterDict()  # embeddings of position and input
        for name in self.images:
            encoder: Any = self.encoders[self.encoder_of[name]]
            self.positions[name] = nn.Parameter(0.1 * torch.randn(encoder.grid**2, width))
        if "title" in self.inputs:
            if text_encoder is None:
                raise ValueError("the title is one of the inputs, but text_encoder is null.")
            self.title = TitleEncoder(text_encoder, width)
        if {"title", "product"} <= set(self.inputs):
            filters = (FeatureFilter(width, fusion.num_heads, dropout) for _ in range(fusion.num_filters))
            self.filters = nn.ModuleList(filters)
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, width)) if fusion.pooling == "cls" else None
        self.fusion = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, fusion.num_heads, fusion.feedforward, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(fusion.num_layers)
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
        """e_o, e_g, e_d, e_s with position embeddings, each (batch, grid * grid, width)."""
        tokens: dict[str, Tensor] = {}
        for share, encoder in self.encoders.items():
            names = [name for name in self.images if self.encoder_of[name] == share]
            tokens |= zip(names, encoder([self.prepared(name, batch) for name in names]), strict=True)
        return {name: tokens[name] + self.positions[name] for name in self.images}

    def prepared(self, name: str, batch: Batch) -> Tensor:
        """The image with 3 channels, the product on `product_background`; for an encoder with `alpha` 4 channels.

        The fourth is the product's alpha, or 1 if the product is not one of the inputs.
        """
        image = batch[name]
        if image.ndim != 4 or image.shape[1] != IMAGE_FIELDS[name]:
            raise ValueError(f"{name} must be (batch, {IMAGE_FIELDS[name]}, height, width), got {tuple(image.shape)}.")
        encoder: Any = self.encoders[self.encoder_of[name]]
        has_product = "product" in self.inputs
        alpha = resize(batch["product"][:, 3:], image.shape[-2:]) if has_product else torch.ones_like(image[:, :1])
        colors = image[:, :3].expand(-1, 3, -1, -1)
        if name == "product":
            colors = colors * alpha + self.product_background * (1 - alpha)
        return torch.cat([colors, alpha.to(colors)], dim=1) if encoder.alpha else colors
