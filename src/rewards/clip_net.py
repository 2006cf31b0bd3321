"""CLIP, how well an image matches its prompt (Radford et al. 2021, arXiv 2103.00020): any network of open_clip."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import torch.nn.functional as F
from open_clip.factory import get_model_config
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from src.build import loadable
from src.rewards.clip_layout import from_transformers
from src.rewards.pixels import RESIZES, channels, fitted
from src.runtime.checkpoint import located
from src.runtime.weights import fill_all, found, state_dict

CONFIG, HUB = "open_clip_config.json", "hf-hub:"
FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers among OpenAI's weights


@loadable
@dataclass(frozen=True)
class ClipSettings:
    """Settings of a `Clip`.

    Args:
        name: a network of open_clip, such as ViT-H-14; a folder in its layout (open_clip_config.json, and the files of
            a tokenizer, if the configuration names one), such as a checkpoint folder; or hf-hub:owner/name. Weights of
            OpenAI, and those tuned from them, need a name that ends in -quickgelu; files do not tell.
        weights: a tag of open_clip, "hub" for those of an hf-hub: name, a file, a folder, or a hub id owner/name, in
            the layout of open_clip, OpenAI or transformers. Downloaded once. Files are never unpickled, and all keys
            and shapes must match. None: random.
        resize: the "shortest" side to the network's size, then a center crop; the "longest" side, then black borders;
            or "squash" both. None: as in the network's configuration, usually shortest.
        clamp: cut what bicubic resizing pushes beyond [0, 1], as PIL does.
    """

    name: str = "ViT-L-14-quickgelu"
    weights: str | None = None
    resize: str | None = None
    clamp: bool = True


class Clip(nn.Module):
    """The cosine of images (batch, 3, height, width) in [0, 1] and their prompts, (batch,), in [-1, 1].

    `net` is the network of open_clip. Preprocessing is part of the graph; it agrees with PIL's to 1/255.

    Raises ValueError for an unknown name, and for weights that cannot be read or do not match.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__()
        self.name = _full_name(settings.name)
        weights = settings.weights
        published = weights == "hub" or weights in open_clip.list_pretrained_tags_by_model(settings.name)
        try:
            with _quiet():
                net = open_clip.create_model(
                    self.name, weights if published else None, load_weights=published, pretrained_text=False
                )
                self.tokenizer: Any = open_clip.get_tokenizer(self.name)
        except (RuntimeError, OSError, ValueError, TypeError, KeyError, AssertionError) as error:
            raise ValueError(f"CLIP {settings.name!r} cannot be built: {' '.join(str(error).split())}") from None
        self.net: Any = net
        _sequence_first(net)
        if weights and not published:
            file = found(weights, FILES)
            fill_all(self.net, clip_weights(file), file)
        size = self.net.visual.image_size
        self.size: int = size if isinstance(size, int) else size[0]
        trained = self.net.visual.preprocess_cfg
        self.resize, self.clamp = settings.resize or trained["resize_mode"], settings.clamp
        if self.resize not in RESIZES:
            raise ValueError(f"resize={self.resize}: choose from {', '.join(RESIZES)}.")
        self.filter = "bilinear" if trained["interpolation"] == "bilinear" else "bicubic"
        for statistic in ("mean", "std"):
            self.register_buffer(statistic, channels(trained[statistic]), persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (batch, 3, height, width) in [0, 1] as the network reads them: resized, cut or padded, normalized."""
        return (fitted(images, self.size, self.resize, self.filter, self.clamp) - self.mean) / self.std

    def image_features(self, images: Tensor) -> Tensor:
        """Unit vectors (batch, width)."""
        return F.normalize(self.net.encode_image(self.preprocess(images)).float(), dim=-1)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors (prompts, width). Prompts are truncated to the network's number of tokens."""
        tokens = self.tokenizer(list(prompts)).to(self.mean.device)
        return F.normalize(self.net.encode_text(tokens).float(), dim=-1)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        different, place = distinct(prompts)
        return (self.image_features(images) * self.text_features(different)[place]).sum(dim=-1)

    @property
    def scale(self) -> Tensor:
        """The factor of cosines in logits, the inverse of the temperature."""
        return self.net.logit_scale.exp()

    def save_config(self, folder: Path) -> None:
        """Writes configuration and tokenizer in the layout of open_clip."""
        keys = ("mean", "std", "interpolation")
        preprocess = {key: self.net.visual.preprocess_cfg[key] for key in keys} | {"resize_mode": self.resize}
        config = {"model_cfg": get_model_config(self.name), "preprocess_cfg": preprocess}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if isinstance(self.tokenizer, HFTokenizer):
            self.tokenizer.save_pretrained(folder)


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different prompts, and which of them each prompt is."""
    number = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    return list(number), [number[prompt] for prompt in prompts]


def clip_weights(file: Path) -> dict[str, Tensor]:
    """The weights in a file in the layout of open_clip, OpenAI or transformers, by the names of open_clip.

    Raises ValueError if the file holds anything but tensors there.
    """
    return from_transformers({key: value for key, value in state_dict(file).items() if key not in OPENAI})


def _full_name(name: str) -> str:
    """The name by which open_clip finds a network."""
    folder = located(name)
    if (folder / CONFIG).is_file():
        return f"local-dir:{folder}"
    if name.startswith(HUB) or name in open_clip.list_models():
        return name
    near = ", ".join(get_close_matches(name, open_clip.list_models())) or "see open_clip.list_models()"
    raise ValueError(f"CLIP {name!r}: no folder with {CONFIG}, and no network of open_clip; similar names: {near}.")


def _sequence_first(net: nn.Module) -> None:
    """Lets the transformers work on (tokens, batch, width), which changes no value.

    On (batch, tokens, width), nn.MultiheadAttention transposes its input, and a linear layer with frozen weights then
    multiplies token by token as soon as a gradient is needed: a pass with gradients takes 1.3 times as long on a CPU.
    """
    transformers: list[Any] = [part for part in net.modules() if isinstance(part, Transformer)]
    for transformer in transformers:
        if all(type(block) is ResidualAttentionBlock for block in transformer.resblocks):
            transformer.batch_first = False
            for block in transformer.resblocks:
                block.attn.batch_first = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's messages that weights are random, and without the handler that these add to the root."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
