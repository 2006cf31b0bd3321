"""Prompts as states of the text encoder; those longer than it reads are cut, read in windows, or refused."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LONG = ("cut", "windows", "refuse")


def text_states(
    tokenizer: Any, text_encoder: Any, prompts: Sequence[str], names: Sequence[str] = (), long: str = "cut"
) -> Tensor:
    """Hidden states of the text encoder: (prompts, words, width).

    Args:
        names: of the prompts, for warnings and errors.
        long: what becomes of prompts with more tokens than the tokenizer's length, 77 for CLIP. "cut": the first are
            read, with a warning. "windows": they are read in windows of that length, split between words, whose states
            are concatenated; shorter prompts are repeated to the same length, which changes no cross attention. So the
            result does not depend on the other prompts. "refuse": ValueError.
    """
    length = tokenizer.model_max_length
    if long == "windows":
        return _windows(tokenizer, text_encoder, prompts)
    for number, ids in enumerate(tokenizer(list(prompts), verbose=False).input_ids):
        if len(ids) > length:
            name, start = names[number] if names else "a prompt", " ".join(prompts[number].split()[:6])
            if long == "refuse":
                raise ValueError(
                    f"{name} has {len(ids)} tokens, {length} are read: {start} ...; shorten it, or choose "
                    "generator.long_prompts=windows or cut."
                )
            warnings.warn(f"{name} is truncated to {length} tokens: {start} ...", stacklevel=3)
            break
    ids = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return text_encoder(ids.to(text_encoder.device))[0]


def unread_words(tokenizer: Any, prompt: str) -> list[str]:
    """The words at the end of a prompt that are not read if it is cut, including one that is read in part."""
    room = tokenizer.model_max_length - 2
    places = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    if len(places) <= room:
        return []
    start = places[room][0]
    while start and not prompt[start - 1].isspace():
        start -= 1
    return prompt[start:].split()


def _windows(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> Tensor:
    length, lists = tokenizer.model_max_length, tokenizer(list(prompts), add_special_tokens=False, verbose=False)
    split = [_split(tokenizer, ids, length - 2) for ids in lists.input_ids]
    whole = [
        [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (length - 2 - len(ids))
        for windows in split
        for ids in windows
    ]
    states = text_encoder(torch.tensor(whole, device=text_encoder.device))[0]
    total = math.lcm(*(len(windows) for windows in split))
    rows = states.split([len(windows) for windows in split])
    return torch.stack([row.flatten(0, 1).repeat(total // len(row), 1) for row in rows])


def _split(tokenizer: Any, ids: list[int], room: int) -> list[list[int]]:
    """The tokens in lists of at most `room`, which end with a word unless a word is longer."""
    ends = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)]
    windows = []
    while len(ids) > room:
        last = next((n for n in range(room, 0, -1) if ends[n - 1]), room)
        windows.append(ids[:last])
        ids, ends = ids[last:], ends[last:]
    return [*windows, ids]
