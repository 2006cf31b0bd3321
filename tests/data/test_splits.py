import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import preferences, rf1m, richhf
from src.data.image_table import ImageTable
from src.data.products import Products
from src.data.rf1m import RF1M
from src.data.richhf import RichHF
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


def prompts(folder: Path) -> Products:
    for name in "abc":
        Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(folder / f"{name}.png")
    (folder / "prompts.csv").write_text("key,prompt\na,oak\nb,red\nc,blue\n")
    return Products(folder, folder / "prompts.csv", size=16)


def images(folder: Path) -> ImageTable:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    (folder / "table.csv").write_text("image,prompt\na.png,oak\nb.png,red\nc.png,blue\n")
    return ImageTable(folder / "table.csv", size=8, val=0, test=0)


SOURCES = {
    "rf1m": (lambda root: RF1M(str(rf1m.write_example(root, 12, 24)), size=8), lambda root: RF1M(str(root), size=8),
             "label.txt", "jpg\t1", "jpg\t3"),
    "products": (prompts, lambda root: Products(root, root / "prompts.csv", size=16), "prompts.csv", "oak", "elm"),
    "images": (images, lambda root: ImageTable(root / "table.csv", size=8, val=0, test=0), "table.csv", "oak", "elm"),
    "richhf": (lambda root: RichHF(str(richhf.write_example(str(root), 6, 32)), size=8),
               lambda root: RichHF(str(root), size=8), "prompts.jsonl", "room", "hall"),
    "choices": (lambda root: choices(preferences.write_example(str(root), 4, 32)), lambda root: choices(root),
                "preference_train.json", '"human_preference": 0', '"human_preference": 1'),
}  # fmt: skip


def choices(root: Path) -> preferences.Preferences:
    return preferences.Preferences("hpd_v1", str(root), {"train": "preference_train.json"}, size=16)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_fingerprint_follows_the_contents_and_not_the_place(kind, tmp_path):
    make, read, name, old, new = SOURCES[kind]
    (tmp_path / "a").mkdir()
    first = make(tmp_path / "a").fingerprint()
    assert read(tmp_path / "a").fingerprint() == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read(tmp_path / "b").fingerprint() == first
    text = (tmp_path / "b" / name).read_text()
    assert old in text
    (tmp_path / "b" / name).write_text(text.replace(old, new, 1))
    assert read(tmp_path / "b").fingerprint() != first
