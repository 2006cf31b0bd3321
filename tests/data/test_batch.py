import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.batch import FIELDS, IMAGE_FIELDS, PADDING, collate, to_float


def record(i: int, words: int = 2, side: int = 3) -> dict:
    pictures = {name: np.full((channels, side, side), i, np.uint8) for name, channels in IMAGE_FIELDS.items()}
    return {
        "key": f"k{i}", "prompt": "a chair", "title": "Chair", **pictures, "label": i % 5, "aligned_words": [1] * words,
        "scores": np.full(4, i / 10, np.float32), "group": i, "chosen": i / 4, "rank": 1 + i % 2, "weight": 1.0,
        "clicked": np.bool_(True),
    }  # fmt: skip


def test_every_field_has_its_type_and_shape():
    batch = collate([record(1, words=3), record(2, words=1)])
    assert tuple(batch) == tuple(FIELDS)
    assert batch["key"] == ["k1", "k2"]
    for name, channels in IMAGE_FIELDS.items():
        assert batch[name].dtype == torch.uint8
        assert batch[name].shape == (2, channels, 3, 3)
    assert batch["label"].dtype == batch["group"].dtype == torch.int64
    assert batch["scores"].dtype == torch.float32
    assert batch["chosen"].dtype == batch["rank"].dtype == batch["weight"].dtype == torch.float32
    assert (batch["chosen"].tolist(), batch["rank"].tolist(), batch["weight"].tolist()) == ([0.25, 0.5], [2, 1], [1, 1])
    assert batch["clicked"].dtype == torch.bool
    assert batch["aligned_words"].tolist() == [[1, 1, 1], [1, PADDING, PADDING]]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=5))
def test_padding_does_not_change_the_words(rows):
    batch = collate([{"key": "k", "aligned_words": words} for words in rows])
    padded = batch["aligned_words"]
    assert padded.dtype == torch.int64
    assert [[word for word in row if word != PADDING] for row in padded.tolist()] == rows


def test_a_batch_of_one_is_a_row_of_a_batch():
    both, one = collate([record(1), record(2)]), collate([record(2)])
    for name, value in one.items():
        row = both[name][1:]
        assert row == value if isinstance(value, list) else torch.equal(row, value)


def test_batches_are_contiguous():
    product = np.random.default_rng(0).integers(0, 256, (4, 6, 5), np.uint8)
    turned = np.ascontiguousarray(product.transpose(1, 2, 0)).transpose(2, 0, 1)  # as a PNG is read
    assert turned.strides != product.strides
    drawn, cached = (collate([{"key": "a", "product": picture}] * 3)["product"] for picture in (product, turned))
    assert torch.equal(drawn, cached)
    assert drawn.stride() == cached.stride() == (120, 30, 5, 1)


def test_to_float_scales_pictures_and_nothing_else():
    batch = collate([record(255), record(0)])
    floats = to_float(batch)
    for name in IMAGE_FIELDS:
        assert floats[name].dtype == torch.float32
        assert floats[name].flatten(1).amax(1).tolist() == [1, 0]
    assert floats["label"] is batch["label"]
    assert torch.equal(to_float(floats)["image"], floats["image"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "label"),
        ({"image": np.zeros((3, 4, 3), np.uint8)}, r"'k2': image is \(3, 4, 3\), but \(3, 3, 3\) in Record 'k1'"),
        ({"image": np.zeros((3, 3, 3), np.float32)}, "'k2': image is float32"),
        ({"product": np.zeros((3, 3, 3), np.uint8)}, r"'k2': product is uint8 \(3, 3, 3\), not uint8 \(4, height"),
    ],
)
def test_records_that_do_not_go_together_are_refused_by_key_and_field(change, message):
    odd = {name: value for name, value in (record(2) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        collate([record(1), odd])


def test_an_unknown_field_and_an_empty_batch_are_refused():
    with pytest.raises(ValueError, match="unknown field colour"):
        collate([record(1) | {"colour": 3}])
    with pytest.raises(ValueError, match="at least one"):
        collate([])
