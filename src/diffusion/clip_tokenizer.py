"""The tokenizer of CLIP from the vocabulary that open_clip ships, for files of weights without a tokenizer."""

from typing import Any

from transformers import CLIPTokenizer

VOCABULARY = 49408  # tokens
LENGTH = 77  # tokens of a prompt
END = "<|endoftext|>"
NAMES = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": END}  # in open_clip and in transformers


def clip_tokenizer(second: bool) -> Any:
    """The CLIPTokenizer of Stable Diffusion 1.x, which pads with the end token, or 2.x (`second`), with token 0."""
    from open_clip.tokenizer import SimpleTokenizer  # importing open_clip takes seconds

    known, make = SimpleTokenizer(), CLIPTokenizer
    numbers = {NAMES.get(token, token): number for token, number in known.encoder.items()}
    merges: Any = list(known.bpe_ranks)
    return make(numbers, merges, pad_token="!" if second else END, model_max_length=LENGTH)
