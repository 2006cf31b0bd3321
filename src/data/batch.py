"""The batch: a plain dict that every data set fills as far as it can and every system reads by field name."""

from typing import Any

import numpy as np
import torch

Record = dict[str, Any]
Batch = dict[str, Any]

CLASSES = ("available", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination")  # paper's order
PICTURES = {"image": 3, "product": 4, "depth": 1, "saliency": 1, "heatmaps": 2}  # field: channels
TEXTS = ("key", "prompt", "title")
FIELDS = (*TEXTS, *PICTURES, "label", "scores", "aligned_words", "group", "chosen", "clicked")
PADDING = -100  # fills aligned_words, and is cross entropy's ignore_index


def collate(records: list[Record]) -> Batch:
    """The records as one batch of their own fields, pictures still uint8 so that workers send a quarter of the bytes.

    key, prompt, title: list of str. Pictures: uint8 (batch, channels, height, width). label, group: int64 (batch,).
    scores: float32 (batch, 4). aligned_words: int64 (batch, words), padded with -100. chosen, clicked: bool (batch,).

    Raises ValueError naming the key of the record and the field when records disagree in fields or in picture shape.
    """
    if not records:
        raise ValueError("A batch needs at least one record.")
    fields = set(records[0])
    unknown = sorted(fields - set(FIELDS))
    if unknown:
        raise ValueError(
            f"{_name(records[0])}: unknown field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}."
        )
    for record in records[1:]:
        if record.keys() != fields:
            odd = ", ".join(sorted(record.keys() ^ fields))
            raise ValueError(f"{_name(record)} and {_name(records[0])} do not both have the field {odd}.")
    return {field: _column(field, records) for field in FIELDS if field in fields}


def _column(field: str, records: list[Record]) -> Any:
    values = [record[field] for record in records]
    if field in TEXTS:
        return [str(value) for value in values]
    if field in PICTURES:
        return _pictures(field, records)
    if field == "aligned_words":
        width = max(len(words) for words in values)
        return torch.tensor([[*words, *[PADDING] * (width - len(words))] for words in values], dtype=torch.long)
    if field == "scores":
        return torch.from_numpy(np.stack([np.asarray(value, np.float32) for value in values]))
    return torch.tensor(
        [value.item() if hasattr(value, "item") else value for value in values],
        dtype=torch.bool if field in ("chosen", "clicked") else torch.long,
    )


def _pictures(field: str, records: list[Record]) -> torch.Tensor:
    first = records[0][field].shape
    for record in records:
        picture = record[field]
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[0] != PICTURES[field]:
            raise ValueError(
                f"{_name(record)}: {field} is {picture.dtype} {tuple(picture.shape)}, "
                f"not uint8 ({PICTURES[field]}, height, width)."
            )
        if picture.shape != first:
            raise ValueError(
                f"{_name(record)}: {field} is {tuple(picture.shape)}, but {tuple(first)} in {_name(records[0])}; "
                "pictures of one batch must have one size."
            )
    # A picture's layout in memory is no part of it, but convolutions round by it: cached or drawn, a run is the same.
    return torch.from_numpy(np.ascontiguousarray(np.stack([record[field] for record in records])))


def _name(record: Record) -> str:
    return f"Record '{record.get('key', '?')}'"


def to_float(batch: Batch) -> Batch:
    """The batch with its uint8 pictures as float32 in [0, 1]; everything else, float pictures included, as it is."""
    return {
        field: value.float().div(255) if field in PICTURES and value.dtype == torch.uint8 else value
        for field, value in batch.items()
    }
