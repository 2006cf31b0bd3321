"""Products and prompts from a folder and a file, laid on the canvas."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data.product_prompts import ProductError, ProductPrompt, placed, read_product_prompts


def cutout(path: Path, size: tuple[int, int] = (40, 30), box: tuple[int, int, int, int] = (5, 10, 25, 20)) -> Path:
    """A red box with alpha on a transparent picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", size, (0, 255, 0, 0))
    image.paste((200, 0, 0, 255), box)
    image.save(path)
    return path


def test_a_table_gives_each_picture_its_prompt_and_lines_of_text_go_round(tmp_path):
    for name in ("b.png", "a.webp", "c.png"):
        cutout(tmp_path / "in" / name)
    (tmp_path / "in/notes.md").write_text("no picture")
    table = tmp_path / "prompts.csv"
    table.write_text('key,prompt,title\nb,"a red room, oak floor",Chair\na,brick,\n')
    found = read_product_prompts(tmp_path / "in", table)
    folder = tmp_path / "in"
    assert found == [
        ProductPrompt("a", folder / "a.webp", "brick", ""),
        ProductPrompt("b", folder / "b.png", "a red room, oak floor", "Chair"),
        ProductPrompt("c", folder / "c.png", ""),
    ]
    (tmp_path / "p.jsonl").write_text('{"key": "c", "prompt": "x"}\n')
    assert [order.prompt for order in read_product_prompts(folder, tmp_path / "p.jsonl")] == ["", "", "x"]
    (tmp_path / "p.txt").write_text("first\n\nsecond\n")
    assert [order.prompt for order in read_product_prompts(folder, tmp_path / "p.txt")] == ["first", "second", "first"]
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfonly")
    assert {order.prompt for order in read_product_prompts(folder, tmp_path / "bom.txt")} == {"only"}


def test_what_cannot_be_read_is_told_by_file_and_line(tmp_path):
    cutout(tmp_path / "in/a.png")
    (tmp_path / "empty").mkdir()
    good = tmp_path / "good.txt"
    good.write_text("a room")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name, text in (
        ("twice.csv", "key,prompt\na,x\na,y\n"),
        ("torn.csv", "key,prompt\na,x,y\n"),
        ("none.csv", "key,title\na,x\n"),
        ("blank.txt", " \n"),
        ("case.csv", "Key,Prompt\na,x\n"),
        ("columns.csv", "key,prompt,prompt\na,x,y\n"),
        ("both.csv", "key,prompt\na,x\na.png,y\n"),
        ("others.csv", "key,prompt\nb,x\n"),
        ("header.csv", "key,prompt\n"),
    ):
        (tmp_path / name).write_text(text)
    for folder, file, words in (
        ("nowhere", "good.txt", "products=.*nowhere: folder not found"),
        ("empty", "good.txt", "there is no image"),
        ("in", "nowhere.csv", "prompts=.*nowhere.csv: file not found"),
        ("in", "torn.csv", r"torn\.csv, line 2: has 3 cells for 2 columns"),
        ("in", "none.csv", r"none\.csv, line 1: the column prompt is missing; the table has key, title"),
        ("in", "blank.txt", "it has no prompt"),
        ("in", "twice.csv", r"twice\.csv, line 3: the key a is already in an earlier line"),
        ("in", "latin.txt", r"latin\.txt: no UTF-8 text"),
        ("in", "case.csv", r"case\.csv, line 1: the column key, prompt is missing; the table has Key, Prompt"),
        ("in", "columns.csv", r"columns\.csv, line 1: has the column 'prompt' twice"),
        ("in", "both.csv", r"both\.csv: a and a\.png are one product, and it is there twice"),
        ("in", "others.csv", r"others\.csv: none of its 1 keys, such as b, names an image of .*in, such as a\."),
        ("in", "header.csv", r"header\.csv: none of its 0 keys names an image"),
    ):
        with pytest.raises(ValueError, match=words):
            read_product_prompts(tmp_path / folder, tmp_path / file)
    cutout(tmp_path / "in/a.webp")
    with pytest.raises(ValueError, match=r"a\.png and a\.webp have one key, a"):
        read_product_prompts(tmp_path / "in", good)


def test_what_is_left_out_is_told(tmp_path):
    for name in ("a.png", ".hidden.png", "b.ico"):
        cutout(tmp_path / "in" / name)
    (tmp_path / "in/notes.md").write_text("no picture")
    table = tmp_path / "prompts.csv"
    table.write_text("key,prompt\na,x\nghost,y\n")
    with pytest.warns(UserWarning, match="in all") as told:
        found = read_product_prompts(tmp_path / "in", table)
    assert [order.key for order in found] == ["a"]
    assert [str(warning.message).partition(": ")[2] for warning in told] == [
        "not read, as no .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff, .gif: b.ico (1 in all).",
        f"keys without an image in {tmp_path / 'in'}: ghost (1 in all).",
    ]


@settings(deadline=None, max_examples=25)
@given(
    wide=st.integers(3, 90), high=st.integers(3, 90), scale=st.floats(0.3, 0.9), size=st.sampled_from([32, 64, 96]),
    x=st.floats(0.45, 0.55),
)  # fmt: skip
def test_the_visible_box_lies_where_it_should_whatever_its_size(tmp_path_factory, wide, high, scale, size, x):
    file = cutout(tmp_path_factory.mktemp("p") / "p.png", (wide + 20, high + 7), (9, 4, 9 + wide, 4 + high))
    canvas = placed(file, size, scale, (x, 0.5))
    assert canvas.shape == (4, size, size)
    assert canvas.dtype == np.uint8
    down, across = np.flatnonzero(canvas[3].any(axis=1)), np.flatnonzero(canvas[3].any(axis=0))
    height, width = down[-1] - down[0] + 1, across[-1] - across[0] + 1
    assert max(height, width) == pytest.approx(scale * size, abs=1)
    assert width / height == pytest.approx(wide / high, abs=(1 + wide / high) / min(height, width) + 0.05)
    assert (across[0] + across[-1] + 1) / 2 == pytest.approx(x * size, abs=1)
    assert (down[0] + down[-1] + 1) / 2 == pytest.approx(size / 2, abs=1)
    assert canvas[1][canvas[3] > 0].max(initial=0) < 10  # hidden green does not bleed in


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": 1.5}, {"centre": (0.5,)}, {"size": -64}])
def test_places_that_fit_no_product_are_refused(wrong, tmp_path):
    with pytest.raises(
        ValueError, match=r"must be at least 1 px, scale=[\d.]+ above 0 and at most 1|centre=.*: two numbers are needed"
    ):
        placed(cutout(tmp_path / "p.png"), **{"size": 64, **wrong})


def test_a_product_that_cannot_be_placed_says_why(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "empty.png")
    whole = cutout(tmp_path / "whole.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (
        ("opaque", "needs an alpha channel"), ("empty", "its alpha is empty"), ("torn", "trunc|broken|EOF"),
        ("text", "cannot identify"), ("gone", "no such file"),
    ):  # fmt: skip
        with pytest.raises(ProductError, match=words):
            placed(tmp_path / f"{name}.png", 32)
    with pytest.raises(ProductError, match="beyond the canvas"):
        placed(tmp_path / "whole.png", 32, 0.9, (0.2, 0.5))


@pytest.mark.parametrize("size", [32, 200])  # smaller and larger than the file
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.4, 0.6)])
def test_an_edge_that_fades_is_not_cut_and_the_visible_box_keeps_its_place(tmp_path, size, centre):
    x, y = np.meshgrid(np.arange(120), np.arange(90))
    away = np.maximum(np.abs(x - 60) / 40, np.abs(y - 45) / 30)  # visible below 1
    alpha = (255 * np.clip(1.5 - away, 0, 1)).astype(np.uint8)
    alpha[:, 60:][alpha[:, 60:] < 128] = 0  # the right edge is hard
    Image.fromarray(np.dstack([np.full((90, 120, 3), 90, np.uint8), alpha])).save(tmp_path / "soft.png")
    canvas = placed(tmp_path / "soft.png", size, 0.4, centre)[3].astype(int)
    down, across = np.flatnonzero(canvas.any(axis=1)), np.flatnonzero(canvas.any(axis=0))
    assert max(canvas[:, across[0]].max(), canvas[down[0]].max(), canvas[down[-1]].max()) <= 16
    assert canvas[:, across[-1]].max() >= 100
    visible = np.flatnonzero((canvas >= 128).any(axis=0))
    assert visible[-1] - visible[0] + 1 == pytest.approx(0.4 * size, abs=1)
    assert (visible[0] + visible[-1] + 1) / 2 == pytest.approx(centre[0] * size, abs=1)
