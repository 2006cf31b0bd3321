import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.splits import split_by_hash
from tests.data.records import Records


@settings(max_examples=50, deadline=None)
@given(
    st.sets(st.integers(0, 10**6), min_size=1, max_size=60),
    st.sets(st.integers(0, 10**6), max_size=20),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
)
def test_splits_are_complete_disjoint_and_stable_under_added_rows(old, new, val, test):
    def place(numbers: set[int]) -> dict[int, str]:
        order = sorted(numbers)
        names = np.array([str(number).encode() for number in order], "S")
        splits = split_by_hash(names, np.arange(len(order)), val, test)
        rows = np.concatenate([*splits.values()])
        assert sorted(rows) == list(range(len(order)))
        return {order[row]: name for name, rows in splits.items() for row in rows}

    before, after = place(old), place(old | new)
    assert all(after[number] == name for number, name in before.items())


def test_split_shares_and_pattern():
    names = np.array([f"sku{number // 8}_{number % 8}.jpg".encode() for number in range(8000)])
    splits = split_by_hash(names, np.arange(8000), val=0.1, test=0.2)
    assert [len(splits[name]) / 8000 for name in ("val", "test")] == pytest.approx([0.1, 0.2], abs=0.02)
    grouped = split_by_hash(names, np.arange(8000), 0.1, 0.2, r"(sku\d+)_")
    products = {name: {int(row) // 8 for row in rows} for name, rows in grouped.items()}
    assert not products["train"] & (products["val"] | products["test"])
    assert not products["val"] & products["test"]
    with pytest.raises(ValueError, match=r"does not fit the key 'sku0_0.jpg'"):
        split_by_hash(names, np.arange(9), 0.1, 0.2, "(x)")
    with pytest.raises(ValueError, match=r"leave rows to train on"):
        split_by_hash(names, np.arange(9), 0.5, 0.5)
    with pytest.raises(ValueError, match=r"split_pattern=\(: not a regular expression"):
        split_by_hash(names, np.arange(9), 0.1, 0.2, "(")


def test_a_split_gives_the_keys_of_its_records_and_takes_maps_as_they_are():
    split, depth = Records([{"key": "b"}, {"key": "a"}]), np.eye(3)
    assert split.keys() == ["b", "a"]
    assert split.unfitted(1, {"depth": depth})["depth"] is depth
