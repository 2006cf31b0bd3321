"""The batch: a plain dict; each data set provides the fields that it has, each system reads those that it needs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Record = dict[str, Any]
Batch = dict[str, Any]

CLASSES = ("available", "space_mismatch", "size_mismatch", "indistinctiveness", "shape_hallucination")  # paper's order
SCORES = ("plausibility", "alignment", "aesthetics", "overall")  # of a record's `scores`, in [0, 1], higher is better
HEAT_MAPS = ("implausibility", "misalignment")  # of a record's `heatmaps`
PADDING = -100  # cross entropy's ignore_index


@dataclass(frozen=True)
class Field:
    """How a field of records becomes a column of a batch.

    kind: "text", a list of str; "image", uint8 (batch, channels, height, width); "number", of `dtype`, (batch, ...);
    "sequence", of `dtype`, (batch, longest), filled up with `padding`.
    """

    kind: str
    channels: int = 0
    dtype: type = np.int64
    padding: int = PADDING


FIELDS = {
    "key": Field("text"),
    "prompt": Field("text"),
    "title": Field("text"),
    "image": Field("image", channels=3),
    "product": Field("image", channels=4),
    "depth": Field("image", channels=1),
    "saliency": Field("image", channels=1),
    "heatmaps": Field("image", channels=2),
    "label": Field("number"),
    "scores": Field("number", dtype=np.float32),
    "aligned_words": Field("sequence"),
    "group": Field("number"),  # of images of one prompt, among which people chose; unique in a split
    "chosen": Field("number", dtype=np.float32),  # the share of its group's choices that the image got, in [0, 1]
    "rank": Field("number", dtype=np.float32),  # 1 + the number of images of its group that are preferred to it
    "weight": Field("number", dtype=np.float32),  # of its group in a loss, the same for all its images
    "clicked": Field("number", dtype=np.bool_),
}
IMAGE_FIELDS = {name: field.channels for name, field in FIELDS.items() if field.kind == "image"}


def collate(records: list[Record]) -> Batch:
    """The records as one batch of their own fields, images still uint8 so that workers send a quarter of the bytes.

    Raises ValueError naming the key of the record and the field when records disagree in fields or in shape.
    """
    if not records:
        raise ValueError("A batch needs at least one record.")
    fields = records[0].keys()
    if unknown := sorted(fields - FIELDS.keys()):
        raise ValueError(
            f"{_name(records[0])}: unknown field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}."
        )
    for record in records[1:]:
        if record.keys() != fields:
            odd = ", ".join(sorted(record.keys() ^ fields))
            raise ValueError(f"{_name(record)} and {_name(records[0])} do not both have the field {odd}.")
    return {name: _column(name, field, records) for name, field in FIELDS.items() if name in fields}


def _column(name: str, field: Field, records: list[Record]) -> list[str] | torch.Tensor:
    if field.kind == "text":
        return [str(record[name]) for record in records]
    if field.kind == "sequence":
        column = np.full((len(records), max(len(record[name]) for record in records)), field.padding, field.dtype)
        for row, record in zip(column, records, strict=True):
            row[: len(record[name])] = record[name]
        return torch.from_numpy(column)
    values = [np.asarray(record[name]) for record in records]
    for record, value in zip(records, values, strict=True):
        if field.kind == "image" and (value.dtype, value.ndim, *value.shape[:1]) != (np.uint8, 3, field.channels):
            raise ValueError(
                f"{_name(record)}: {name} is {value.dtype} {value.shape}, not uint8 ({field.channels}, height, width)."
            )
        if value.shape != values[0].shape:
            raise ValueError(
                f"{_name(record)}: {name} is {value.shape}, but {values[0].shape} in {_name(records[0])}; "
                "a batch needs one shape."
            )
    # An image's layout in memory is no part of it, but convolutions round by it: cached or drawn, a run is the same.
    column = np.ascontiguousarray(np.stack(values))
    return torch.from_numpy(column if field.kind == "image" else column.astype(field.dtype))


def _name(record: Record) -> str:
    return f"Record '{record.get('key', '?')}'"


def to_float(batch: Batch) -> Batch:
    """The batch with its uint8 images as float32 in [0, 1]; everything else, float images included, as it is."""
    return {
        field: value.float().div(255) if field in IMAGE_FIELDS and value.dtype == torch.uint8 else value
        for field, value in batch.items()
    }
