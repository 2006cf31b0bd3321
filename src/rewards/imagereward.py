"""ImageReward: which image of a prompt people prefer (Xu et al., NeurIPS 2023, arXiv 2304.05977)."""

from dataclasses import dataclass
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel

from src.data.batch import Batch
from src.rewards.base import Reward, Score
from src.rewards.head import LinearHead
from src.rewards.pixels import CLIP_MEAN, CLIP_STD, channels, fitted
from src.runtime.checkpoint import located
from src.runtime.weights import fill_all, found, state_dict

FILES = ("ImageReward.pt", "ImageReward.safetensors", "model.safetensors")
TOKENS = 35  # of a prompt, padding included
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's values on the authors' images
UNUSED = (  # in the file, but not in the reward
    "blip.text_encoder.embeddings.position_ids",
    "blip.vision_proj.weight", "blip.vision_proj.bias", "blip.text_proj.weight", "blip.text_proj.bias",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; those of the published weights by default: a ViT-L/16 and a BERT-base."""

    image: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_feedforward: int = 3072
    vocabulary: int = 30524
    positions: int = 512


class Blip(nn.Module):
    """BLIP's image-grounded text encoder with a head; its names are those of the published file."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        vision = VisionTransformer(
            sizes.image, sizes.patch, num_classes=0, global_pool="", embed_dim=sizes.vision_width,
            depth=sizes.vision_layers, num_heads=sizes.vision_heads,
        )  # fmt: skip
        config = BlipTextConfig(
            vocab_size=sizes.vocabulary, hidden_size=sizes.text_width, encoder_hidden_size=sizes.vision_width,
            num_hidden_layers=sizes.text_layers, num_attention_heads=sizes.text_heads,
            intermediate_size=sizes.text_feedforward, max_position_embeddings=sizes.positions,
        )  # fmt: skip
        text = BlipTextModel(config, add_pooling_layer=False)
        self.blip = nn.ModuleDict({"visual_encoder": vision, "text_encoder": text})
        self.mlp = LinearHead(sizes.text_width)

    def forward(self, images: Tensor, tokens: Any) -> Tensor:
        """Values (batch,) of preprocessed images and tokenized prompts: the head of the text's first token."""
        seen = self.blip["visual_encoder"](images)  # (batch, 1 + patches, width)
        read = self.blip["text_encoder"](
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen
        )
        return self.mlp(read.last_hidden_state[:, 0])


class ImageReward(Reward):
    """The standardized preference for an image under its prompt, mostly -2 to 2, 0 on average. Higher is better.

    Images: shorter side to 224 px, bicubic, center crop. Prompts: 35 BERT tokens, padding included. Values are those of
    the head, minus 0.167, divided by 1.033, as published.

    Args:
        weights: the file ImageReward.pt, or a folder or hub id that has it.
        tokenizer: folder or hub id of the tokenizer of bert-base-uncased.
        sizes: see `Sizes`; None: those of the published weights.
        threshold: from which `src.generate` accepts an image; 0 is the mean of the authors' images.

    Raises ValueError if weights or tokenizer cannot be had, or the weights do not match.
    """

    fields = frozenset({"prompt"})
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        sizes: Sizes | None = None,
        threshold: float | None = 0.0,
    ) -> None:
        super().__init__()
        self.threshold, self.size = threshold, (sizes or Sizes()).image
        file = found(weights, FILES)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(located(tokenizer))
        except (OSError, ValueError) as error:
            raise ValueError(f"tokenizer={tokenizer} cannot be had: {' '.join(str(error).split())[:200]}") from None
        self.net = Blip(sizes or Sizes())
        fill_all(self.net, state_dict(file), file, UNUSED)
        self.register_buffer("mean", channels(CLIP_MEAN), persistent=False)
        self.register_buffer("std", channels(CLIP_STD), persistent=False)
        self.freeze()

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (batch, 3, height, width) in [0, 1] as (batch, 3, size, size), cropped and normalized."""
        return (fitted(images, self.size) - self.mean) / self.std

    def score(self, images: Tensor, batch: Batch) -> Score:
        tokens = self.tokenizer(
            list(batch["prompt"]), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(images.device)
        return Score((self.net(self.preprocess(images), tokens).float() - MEAN) / STD, {})
