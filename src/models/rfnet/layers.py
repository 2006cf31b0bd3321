"""The title encoder and the feature filter of RFNet."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from src.build import loadable
from src.runtime.checkpoint import located

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of a data loader

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


@loadable
@dataclass(frozen=True)
class TextEncoderSettings:
    """Settings of a `TitleEncoder`.

    Args:
        name: folder or hub id of a transformers text encoder: tokenizer, configuration and optionally weights.
        options: changes of its configuration.
        pretrained: load its weights; otherwise they are initialized at random.
        max_tokens: longer titles are truncated.
        ordinal_numbers: initialize the embeddings of numbers with `ordinal_embeddings`, so that similar sizes have
            similar embeddings, including numbers that do not occur in training.
        word_noise: share of the tokens that are replaced by random words in training, so that unknown product names
            have little effect; numbers and special tokens are kept.
    """

    name: str = "src/data/showroom/text"
    options: Mapping[str, Any] | None = None
    pretrained: bool = False
    max_tokens: int = 48
    ordinal_numbers: bool = False
    word_noise: float = 0.0


class TitleEncoder(nn.Module):
    """Tokens (batch, words, width) of titles and their padding mask, bool (batch, words), True at padding.

    Raises ValueError if the encoder cannot be loaded, or options, tokenizer or `max_tokens` do not match it.
    """

    words: Tensor

    def __init__(self, settings: TextEncoderSettings, width: int) -> None:
        super().__init__()
        name, max_tokens = settings.name, settings.max_tokens
        place = str(located(name))
        if os.path.isdir(place):
            for files in (("config.json",), ("tokenizer_config.json",), VOCABULARIES):
                if not any(os.path.isfile(os.path.join(place, file)) for file in files):
                    raise ValueError(f"{place} is not a text encoder folder: {files[0]} is missing.")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place)
            config, unknown = AutoConfig.from_pretrained(place, return_unused_kwargs=True, **(settings.options or {}))
            if unknown:
                raise ValueError(f"text_encoder.options: {name} has no option {', '.join(sorted(unknown))}.")
            net: Any = AutoModel.from_config(config) if not settings.pretrained else AutoModel.from_pretrained(
                place, config=config, dtype=torch.float32
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"text_encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
        except JSONDecodeError as error:
            raise ValueError(f"{place}: invalid JSON in tokenizer or configuration: {error}") from None
        vocabulary, limit = net.config.vocab_size, getattr(net.config, "max_position_embeddings", max_tokens)
        if len(self.tokenizer) > vocabulary or max_tokens > limit:
            raise ValueError(
                f"text_encoder {name!r} has {vocabulary} words and {limit} positions, but its tokenizer has "
                f"{len(self.tokenizer)} and text_encoder.max_tokens is {max_tokens}."
            )
        if getattr(net, "pooler", None) is not None:
            net.pooler = None  # unused; its weights would never get a gradient
        if settings.ordinal_numbers and not settings.pretrained:
            ordinal_embeddings(net.get_input_embeddings().weight, self.tokenizer.get_vocab())
        words = {row for word, row in self.tokenizer.get_vocab().items() if not word.isdigit()}
        plain = sorted(words - set(self.tokenizer.all_special_ids))
        self.register_buffer("words", torch.tensor(plain), persistent=False)
        self.net, self.max_tokens, self.word_noise = net, max_tokens, settings.word_noise
        self.project = nn.Linear(net.config.hidden_size, width)
        self.norm = nn.LayerNorm(width)

    def check(self, titles: Sequence[str]) -> None:
        """Raises ValueError if the tokenizer does not know more than a fifth of the tokens of these titles."""
        tokens = [token for ids in self.tokenizer(list(titles), add_special_tokens=False)["input_ids"] for token in ids]
        unknown = tokens.count(self.tokenizer.unk_token_id) / max(len(tokens), 1)
        if unknown > 0.2:
            raise ValueError(
                f"the tokenizer does not know {unknown:.0%} of the tokens of titles such as {titles[0]!r}; "
                "set model.text_encoder.name to another text encoder, such as bert-base-chinese."
            )

    def forward(self, titles: Sequence[str]) -> tuple[Tensor, Tensor]:
        device = self.project.weight.device
        words = self.tokenizer(
            list(titles), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        ids, mask = words["input_ids"].to(device), words["attention_mask"].to(device)
        if self.training and self.word_noise:
            ids = self.noised(ids)
        x = self.net(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, words, hidden)
        return self.norm(self.project(x)), mask == 0

    def noised(self, ids: Tensor) -> Tensor:
        """Token ids (batch, words) with a share `word_noise` replaced by random words."""
        chosen = torch.isin(ids, self.words) & (torch.rand(ids.shape, device=ids.device) < self.word_noise)
        other = self.words[torch.randint(len(self.words), ids.shape, device=ids.device)]
        return torch.where(chosen, other, ids)


class FeatureFilter(nn.Module):
    """The feature filter module of the paper: filters the product tokens e_o by the title tokens e_c.

    e_f = Conv(Conv(CrossAttention(e_o, e_c)) * Conv(e_o)) + e_o with 1x1 convolutions, which are linear layers.
    e_o (batch, positions, width), e_c (batch, words, width); `padding` (batch, words) is True at padding.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.title = nn.Linear(width, width)
        self.product = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, product: Tensor, title: Tensor, padding: Tensor) -> Tensor:
        attended, _ = self.attention(product, title, title, key_padding_mask=padding, need_weights=False)
        return self.out(self.title(attended) * self.product(product)) + product


@torch.no_grad()
def ordinal_embeddings(weight: Tensor, vocabulary: Mapping[str, int]) -> None:
    """Sets the rows of positive integers to sines and cosines of their logarithm, scaled to the standard deviation.

    The frequencies are 1/2 to 16 radians per factor of e, to resolve both small and large ratios.
    """
    digits = {word: row for word, row in vocabulary.items() if word.isascii() and word.isdigit()}
    numbers = {int(word): row for word, row in digits.items() if int(word) > 0}
    if not numbers:
        return
    frequencies = 0.5 * 32 ** torch.linspace(0, 1, weight.shape[1] // 2)
    angles = torch.tensor(list(numbers)).log()[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) * 2**0.5 * weight.std()
    weight[torch.tensor(list(numbers.values())), : waves.shape[1]] = waves.to(weight)
