"""Tiny networks with random weights in the layouts in which the real ones are published."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from src.rewards.imagereward import UNUSED, Blip, Sizes

BLIP = {
    "image": 32, "patch": 8, "vision_width": 32, "vision_layers": 2, "vision_heads": 2, "text_width": 24,
    "text_layers": 2, "text_heads": 2, "text_feedforward": 48, "vocabulary": 724, "positions": 48,
}  # fmt: skip
SPECIAL = ("<pad>", "<end>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", "<unk>")
WORDS = ("yes", "no", "Yes", "does", "this", "image", "show", "answer", "or", "oak", "chair", "49", "brown", "a", "red")
TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def shaken(net: nn.Module, least: int = 1) -> None:
    """Weights with at least `least` dimensions at random: fresh ones may be zero, which would hide a mistake."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in net.named_parameters():
            if weight.ndim >= least and "logit_scale" not in name:
                norm = weight.ndim == 1 and "norm" in name.lower() and name.endswith("weight")
                nn.init.normal_(weight, float(norm), 0.2)


def clip() -> CLIPModel:
    """A CLIP of transformers, as PickScore's, of the sizes of `tests.rewards.tiny.CLIP`."""
    size = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    words = {"vocab_size": 320, "max_position_embeddings": 24, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
    model = CLIPModel(
        CLIPConfig(
            text_config={**size, **words, "hidden_act": "gelu"},
            vision_config={**size, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"},
            projection_dim=16,
        )
    )
    shaken(model)
    return model.eval()


def blip() -> dict[str, Tensor]:
    """The state dict of ImageReward.pt, with the weights that the reward does not use."""
    net = Blip(Sizes(**BLIP))
    shaken(net)
    return net.state_dict() | {name: torch.zeros(1) for name in UNUSED}


def qwen(folder: Path) -> str:
    """A folder of a Qwen2-VL with a tokenizer of whole words and a plain chat template."""
    words = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokens = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        additional_special_tokens=list(SPECIAL[2:6]),
    )  # fmt: skip
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    patches: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images, videos = Qwen2VLImageProcessor(size=size, **patches), Qwen2VLVideoProcessor(size=size, **patches)
    Qwen2VLProcessor(images, tokenizer, videos, TEMPLATE).save_pretrained(folder)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        vision_start_token_id=2, image_token_id=3, vision_end_token_id=4, video_token_id=5,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    shaken(model, least=2)
    model.save_pretrained(folder)
    return str(folder)


def idefics(folder: Path) -> str:
    """A folder of an Idefics3, the network of SmolVLM, which splits images into tiles."""
    size, names = 16, ("<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>")
    special = ("<pad>", "<end>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *names)
    words = {word: number for number, word in enumerate((*special, "<unk>", *WORDS))}
    tokens = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        additional_special_tokens=list(special[2:]),
    )  # fmt: skip
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * size}, max_image_size={"longest_edge": size})
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": len(words), "num_key_value_heads": 2, "pad_token_id": 0}
    config = Idefics3Config(
        vision_config={**layers, "image_size": size, "patch_size": 4}, text_config={**layers, **text},
        image_token_id=2, scale_factor=2,
    )  # fmt: skip
    model = Idefics3ForConditionalGeneration(config)
    shaken(model, least=2)
    model.save_pretrained(folder)
    return str(folder)
