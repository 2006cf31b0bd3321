"""RAHF: image and prompt tokens fused by self-attention; heads for heat maps and scores; a decoder for the words.

Liang et al., "Rich Human Feedback for Text-to-Image Generation", CVPR 2024, arXiv 2312.10240, section 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

from src.build import loadable
from src.data.batch import HEAT_MAPS, PADDING, SCORES
from src.models.layers import ImageEncoder, ImageEncoderSettings
from src.models.rahf.heads import HeatMapHead, ScoreHead
from src.models.rahf.words import MarkedPrompts, Tokens
from src.runtime.checkpoint import located

VARIANTS = ("multi_head", "augmented_prompt")
DECODINGS = ("constrained", "free")


@loadable
@dataclass(frozen=True)
class PromptModelSettings:
    """Settings of the T5 model that fuses image and prompt tokens and writes the words.

    Args:
        name: folder or hub id of a T5 of transformers: tokenizer, configuration and optionally weights.
        options: changes to its configuration.
        pretrained: load its weights; otherwise they are initialized at random.
        max_tokens: of a prompt; words beyond are cut.
        memory: what the decoder attends to, the fused tokens of the "prompt" or of "all", the image's too.
    """

    name: str = "t5-base"
    options: Mapping[str, Any] | None = None
    pretrained: bool = False
    max_tokens: int = 128
    memory: str = "all"


@loadable
@dataclass(frozen=True)
class HeadSettings:
    """Widths of the layers of the heads; the paper's by default. Each deconvolution doubles the heat maps' side."""

    map_convs: Sequence[int] = (768, 384)
    map_deconvs: Sequence[int] = (768, 384, 384, 192)
    score_convs: Sequence[int] = (768, 384, 128, 64)
    score_dense: Sequence[int] = (2048, 1024)


@dataclass(frozen=True)
class Fused:
    """The encoder's output: feature map (batch, width, grid, grid), and what the decoder attends to, with its mask."""

    features: Tensor
    memory: Tensor
    mask: Tensor


class RAHF(nn.Module):
    """Heat maps, scores and misaligned words of images (batch, 3, height, width) in [0, 1] under their prompts.

    `thresholds`: of each heat map, from which a pixel counts as marked.
    variant: "multi_head" has a head for each heat map and score. "augmented_prompt" has one head for all heat maps and
    one for all scores, and encodes the prompt once more for each of them, with the task's name before it.

    Raises ValueError if the T5 cannot be loaded or options do not fit it.
    """

    thresholds: Tensor

    def __init__(
        self, variant: str, image_encoder: ImageEncoderSettings, prompt_model: PromptModelSettings, heads: HeadSettings
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant}: choose {' or '.join(VARIANTS)}.")
        if prompt_model.memory not in ("prompt", "all"):
            raise ValueError(f"memory={prompt_model.memory}: choose prompt or all.")
        self.augmented, self.reads_image = variant == "augmented_prompt", prompt_model.memory == "all"
        tokenizer, self.t5 = _t5(prompt_model)
        self.prompts = MarkedPrompts(tokenizer, prompt_model.max_tokens)
        self.register_buffer("thresholds", torch.full((len(HEAT_MAPS),), 0.5))
        width = self.t5.config.d_model
        self.encoder = ImageEncoder(image_encoder, width)
        self.map_heads = nn.ModuleList(
            HeatMapHead(width, heads.map_convs, heads.map_deconvs) for _ in range(1 if self.augmented else 2)
        )
        self.score_heads = nn.ModuleList(
            ScoreHead(width, self.encoder.grid, heads.score_convs, heads.score_dense)
            for _ in range(1 if self.augmented else len(SCORES))
        )

    def fuse(self, tokens: Tensor, prompts: Sequence[str], task: str = "") -> Fused:
        """Self-attention over the image tokens (batch, grid * grid, width) and those of the prompts."""
        words = self.prompts.inputs(prompts, task)
        ids, seen = words.ids.to(tokens.device), words.mask.to(tokens.device)
        size = tokens.shape[1]
        both = torch.cat([tokens, self.t5.shared(ids).to(tokens.dtype)], dim=1)
        mask = torch.cat([seen.new_ones(len(tokens), size), seen], dim=1)
        fused = self.t5.encoder(inputs_embeds=both, attention_mask=mask).last_hidden_state
        features = fused[:, :size].transpose(1, 2).unflatten(2, (self.encoder.grid, self.encoder.grid))
        start = 0 if self.reads_image else size
        return Fused(features, fused[:, start:], mask[:, start:])

    def forward(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor, Fused]:
        """Logits of the heat maps (batch, 2, h, w) and scores (batch, 4), and what the decoder reads."""
        (tokens,) = self.encoder([images])
        plain = self.fuse(tokens, prompts)
        if self.augmented:
            of_maps = [self.fuse(tokens, prompts, f"{name} heatmap").features for name in HEAT_MAPS]
            of_scores = [self.fuse(tokens, prompts, f"{name} score").features for name in SCORES]
            maps = torch.cat([self.map_heads[0](features) for features in of_maps], dim=1)
            scores = torch.cat([self.score_heads[0](features) for features in of_scores], dim=1)
        else:
            maps = torch.cat([head(plain.features) for head in self.map_heads], dim=1)
            scores = torch.cat([head(plain.features) for head in self.score_heads], dim=1)
        return maps, scores, plain

    def words_loss(self, fused: Fused, targets: Tokens) -> Tensor:
        """Mean cross-entropy of the marked prompts' tokens; padding does not count."""
        ids, mask = targets.ids.to(fused.memory.device), targets.mask.to(fused.memory.device)
        labels = ids.masked_fill(~mask, PADDING)
        return self.t5(encoder_outputs=(fused.memory,), attention_mask=fused.mask, labels=labels).loss

    def misaligned(self, fused: Fused, prompts: Sequence[str], decoding: str = "constrained") -> Tensor:
        """p(misaligned) of each word (batch, words), nan beyond a prompt's words; 0 or 1 if `decoding` is "free"."""
        decode = self.prompts.constrained if decoding == "constrained" else self.prompts.free
        return decode(self.t5, fused.memory, fused.mask, prompts)


def _t5(settings: PromptModelSettings) -> tuple[Any, Any]:
    place, name = str(located(settings.name)), settings.name
    config: Any
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        config, unknown = AutoConfig.from_pretrained(place, return_unused_kwargs=True, **(settings.options or {}))
        if config.model_type != "t5":
            raise ValueError(f"prompt_model {name!r} is a {config.model_type}, not a t5.")
        if unknown:
            raise ValueError(f"prompt_model.options: the configuration of {name} has no {', '.join(sorted(unknown))}.")
        if settings.pretrained:
            net = T5ForConditionalGeneration.from_pretrained(place, config=config, dtype=torch.float32)
        else:
            net = T5ForConditionalGeneration(config)
    except OSError as error:
        raise ValueError(f"prompt_model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"prompt_model {name!r} has {config.vocab_size} tokens, its tokenizer {len(tokenizer)}.")
    return tokenizer, net
