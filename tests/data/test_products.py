"""A folder of products as a data set, and the folder that the showroom makes to try one."""

import numpy as np
import pytest
from PIL import Image

from src.data.product_prompts import placed, read_product_prompts
from src.data.products import Products, write_example
from src.data.showroom.world import Showroom
from src.data.splits import SPLITS
from tests.data.test_product_prompts import cutout


def test_a_folder_is_a_data_set_whose_splits_share_nothing(tmp_path):
    names = [f"p{number:02}" for number in range(30)]
    for name in names:
        cutout(tmp_path / "in" / f"{name}.png")
    table = tmp_path / "prompts.csv"
    table.write_text("key,prompt,title\n" + "".join(f"{name},room {name},title {name}\n" for name in names))
    source = Products(tmp_path / "in", table, size=64, scale=0.5, val=0.2, test=0.01)
    splits = {name: [row["key"] for row in source.split(name)] for name in SPLITS}  # type: ignore[attr-defined]
    assert {name: len(keys) for name, keys in splits.items()} == {"train": 23, "val": 6, "test": 1}
    assert sorted(key for keys in splits.values() for key in keys) == names
    row = source.split("val")[2]
    assert row["prompt"] == f"room {row['key']}"
    assert row["title"] == f"title {row['key']}"
    assert np.array_equal(row["product"], placed(tmp_path / "in" / f"{row['key']}.png", 64, 0.5))
    assert source.fields == {"key", "prompt", "product", "title"}
    (tmp_path / "p.txt").write_text("a room")
    assert "title" not in Products(tmp_path / "in", tmp_path / "p.txt", 64).fields


def test_a_data_set_that_lacks_something_is_refused_by_name(tmp_path):
    for name in "abc":
        cutout(tmp_path / "in" / f"{name}.png")
    for text, told in (
        ("key,prompt\na,x\nc,y\n", r"no prompt for b\.png \(1 in all\)"),
        ("key,prompt,title\na,x,t\nb,y,\nc,y,t\n", r"no title for b\.png"),
    ):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(ValueError, match=told):
            Products(tmp_path / "in", tmp_path / "p.csv", 64)
    (tmp_path / "p.csv").write_bytes(b"key,prompt\na,x\nb,caf\xe9\nc,y\n")
    with pytest.raises(ValueError, match=r"1 of 3 products cannot be placed: .*b\.png: the prompt is not valid UTF-8"):
        Products(tmp_path / "in", tmp_path / "p.csv", 64)
    (tmp_path / "p.txt").write_text("a room")
    with pytest.raises(ValueError, match=r"val=0\.5, test=0\.4 leave none of its 3 products to train on"):
        Products(tmp_path / "in", tmp_path / "p.txt", 64, val=0.5, test=0.4)
    for name in "abc":
        Image.new("RGBA", (8, 8)).save(tmp_path / "in" / f"{name}.png")
    with pytest.raises(ValueError, match=r"3 of 3 products cannot be placed: .*[abc]\.png: its alpha is empty"):
        Products(tmp_path / "in", tmp_path / "p.txt", 64)


def test_the_example_is_the_showrooms_products_with_their_own_prompts_and_titles(tmp_path):
    folder = write_example(tmp_path / "shop", 3, 64)
    found = read_product_prompts(folder / "products", folder / "prompts.csv")
    world = Showroom({"test": 9}, 64).split("test")
    rows = [world[index] for index in (0, 2, 5)]  # the first tries at three briefs
    assert [(order.key, order.prompt, order.title) for order in found] == [
        (row["key"], row["prompt"], row["title"]) for row in rows
    ]
    for order, row in zip(found, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(order.file)), row["product"].transpose(1, 2, 0))
    with pytest.raises(ValueError, match="shop is not empty"):
        write_example(folder, 3, 64)
    with pytest.raises(ValueError, match="size=0 at least 32"):
        write_example(tmp_path / "other", 3, 0)
