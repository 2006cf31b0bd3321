"""Positive, negative and regularization images: prompts, shares, keys, and the faults that are told with their rows."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.config import compose
from src.data.identified import Identified, epoch
from src.data.image_table import ImageTable, write_example

WHOLE = {"size": 8, "val": 0.0, "test": 0.0}


def table(file: Path, kinds: list[str], first: int = 0, products: bool = False) -> Path:
    """A table of gray images, whose value is their number, with the kinds."""
    rows = ["key,image,prompt,kind" + ",product" * products]
    file.parent.mkdir(parents=True, exist_ok=True)
    for number, kind in enumerate(kinds, start=first):
        Image.new("RGB", (12, 8), (number,) * 3).save(file.parent / f"{number}.png")
        rows.append(f"ad{number},{number}.png,room {number},{kind}" + ",cut.png" * products)
    Image.new("RGBA", (12, 8), (9, 9, 9, 255)).save(file.parent / "cut.png")
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.fixture
def selected(tmp_path: Path) -> Path:
    return table(tmp_path / "selected.csv", ["positive", "negative", "positive"])


@pytest.fixture
def regularization(tmp_path: Path) -> Path:
    return table(tmp_path / "good/images.csv", [""] * 2)


def test_only_negative_prompts_have_the_identifier_and_keys_their_part(selected, regularization):
    source = Identified(selected, regularization=regularization, **WHOLE)
    records = [source.split("train")[index] for index in range(5)]
    assert [(record["key"], record["prompt"]) for record in records] == [
        ("selected/ad0", "room 0"), ("selected/ad1", "Weird image. room 1"), ("selected/ad2", "room 2"),
        ("regularization/ad0", "room 0"), ("regularization/ad1", "room 1"),
    ]  # fmt: skip
    assert [int(record["image"].max()) for record in records] == [0, 1, 2, 0, 1]
    assert all(record["product"].shape == (4, 8, 8) for record in records)
    assert source.about.startswith("2 positive, 1 negative, 2 regularization training images; 'Weird image. ' is")


@pytest.mark.parametrize(
    ("sizes", "share", "rows"),
    [
        ((3, 10), 0.5, (10, 10)), ((10, 3), 0.5, (10, 10)), ((4, 6), 0.75, (4, 12)), ((4, 60), 0.75, (20, 60)),
        ((37, 200), 0.9, (37, 333)),
    ],
)  # fmt: skip
def test_the_part_that_is_too_small_for_the_share_is_repeated(sizes, share, rows):
    assert epoch(sizes[0], sizes[1], share) == rows
    assert rows[1] / sum(rows) == pytest.approx(share, abs=1e-3)


def test_a_share_holds_in_training_and_repeats_evenly(selected, regularization):
    source = Identified(selected, regularization=regularization, share=0.8, **WHOLE)
    rows = source.split("train")
    counts = Counter(rows[index]["key"] for index in range(len(rows)))
    assert counts == {f"selected/ad{n}": 1 for n in range(3)} | {f"regularization/ad{n}": 6 for n in range(2)}


def test_one_part_alone(selected, regularization):
    alone = Identified(None, regularization=regularization, share=1.0, **WHOLE).split("train")
    assert [alone[index]["key"] for index in range(len(alone))] == ["regularization/ad0", "regularization/ad1"]
    assert len(Identified(selected, share=0.0, **WHOLE).split("train")) == 3


def test_validation_has_every_row_once(selected, regularization):
    source = Identified(selected, 8, regularization, share=0.9, val=0.4, test=0.0)
    counted = [len(source.parts[name].rows["val"]) for name in ("selected", "regularization")]
    assert len(source.split("val")) == sum(counted)
    assert len(source.split("test")) == 0


def test_it_changes_with_either_table(selected, regularization):
    def now() -> str:
        return Identified(selected, regularization=regularization, **WHOLE).fingerprint()

    first = now()
    assert now() == first
    table(regularization, ["", "", ""])
    assert now() != first


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": 1.5}, r"share=1\.5 must be in \[0, 1\]"),
        ({"share": 0.5, "regularization": None}, r"regularization=null, but share=0\.5: a table is needed"),
        ({"table": None}, "table=null, but share=null: a table is needed"),
        ({"identifier": " "}, "identifier=' ': a text is needed"),
        ({"fit": "cut"}, "fit=cut: choose one of squash, pad, crop"),
    ],
)
def test_what_cannot_be_is_refused(selected, regularization, options, told):
    with pytest.raises(ValueError, match=told):
        Identified(**{"table": selected, "regularization": regularization} | WHOLE | options)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (["positive"] * 2, r"selected\.csv: none of 2 training rows has kind=negative; src\.select writes it"),
        (["negative"], r"selected\.csv: none of 1 training rows has kind=positive"),
        (["positive", "good"], r"selected\.csv, row 2 \(ad1\): kind=good: choose one of positive, negative"),
    ],
)
def test_a_table_without_both_kinds_is_told(tmp_path, kinds, told):
    with pytest.raises(ValueError, match=told):
        Identified(table(tmp_path / "selected.csv", kinds), share=0.0, **WHOLE)


def test_a_missing_image_is_told_with_table_row_and_file(selected, regularization):
    (regularization.parent / "1.png").unlink()
    rows = Identified(selected, regularization=regularization, **WHOLE).split("train")
    with pytest.raises(ValueError, match=r"images\.csv, row 2 \(ad1\): .*1\.png: no such file"):
        rows[4]


def test_negative_rows_are_never_trained_on_as_good_ones(selected, regularization):
    with pytest.raises(ValueError, match=r"selected\.csv, row 2 \(ad1\) is negative: train on it with data=identified"):
        ImageTable(selected, **WHOLE)
    with pytest.raises(ValueError, match=r"row 2 \(ad1\) is negative"):
        Identified(selected, regularization=selected, **WHOLE)


def test_products_in_one_part_only_are_told(tmp_path, selected):
    good = table(tmp_path / "good/images.csv", [""], products=True)
    with pytest.warns(UserWarning, match=r"selected\.csv has no products: its images are trained without outline"):
        Identified(selected, regularization=good, **WHOLE)


def test_a_folder_of_images_and_prompts(tmp_path, selected):
    for name in ("image", "prompt"):
        (tmp_path / "good" / name).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (number,) * 3).save(tmp_path / f"good/image/{number}.png")
        (tmp_path / f"good/prompt/{number}.txt").write_text(f"room {number}\n")
    source = ImageTable(tmp_path / "good", **WHOLE)
    records = [source.split("train")[index] for index in range(3)]
    assert [(r["key"], r["prompt"], int(r["image"].max())) for r in records] == [
        ("0", "room 0", 0), ("1", "room 1", 1), ("2", "room 2", 2),
    ]  # fmt: skip
    (tmp_path / "good/prompt/1.txt").unlink()
    with pytest.raises(ValueError, match=r"good, row 2 \(1\): .*1\.txt: no such file"):
        Identified(selected, regularization=tmp_path / "good", **WHOLE)


def test_crop_takes_the_center_of_the_shorter_side(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("image,prompt\na.png,room\n")
    record = ImageTable(tmp_path / "a.csv", 4, "crop", val=0, test=0).split("train")[0]
    assert record["image"].min() == 200
    assert record["product"].max() == 0


@pytest.mark.parametrize("name", ["adapt", "adapt_paper"])
def test_no_prompt_is_dropped_and_the_paper_has_its_values(name):
    words = [f"experiment={name}", "data.source.table=selected.csv", "data.source.regularization=good"]
    config = compose("fit", words)
    assert (config.model.prompt_dropout, config.model.trainable) == (0, "unet_lora")
    assert config.data.source.identifier == "Weird image. "
    if name == "adapt_paper":
        model, trainer = config.model, config.trainer
        assert (model.rank, model.lr, model.weight_decay, model.schedule) == (32, 1e-5, 0.01, "constant")
        assert (config.data.batch_size, trainer.max_steps, trainer.gradient_clip_val) == (40, 10_000, 1)
        assert (config.seed, config.data.source.share, config.data.source.size) == (42, None, 512)


def test_the_showrooms_table(tmp_path):
    out = write_example(tmp_path / "shop", 3, 32)
    with (out / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["available"] * 3
    source = ImageTable(out / "images.csv", 32, val=0, test=0)
    assert source.products
    assert source.split("train")[0]["product"].max() == 255
    with pytest.raises(ValueError, match="label=good: choose one of available"):
        write_example(tmp_path / "other", 3, 32, label="good")
