import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.ads import Ads, Folder, RowError, Table, read_image

FIELDS = frozenset({"product", "title"})


def picture(file: Path, mode: str = "RGB", size: tuple[int, int] = (12, 8), seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(file)
    return file


def table(folder: Path, rows: list[dict[str, str]], name: str = "ads.csv") -> Path:
    file = folder / name
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return file


def problems(ads: Ads) -> dict[int, str]:
    """The reason of every bad row, read or not."""
    found = {}
    for row in ads:
        try:
            ads.read(row)
        except RowError as error:
            found[row.number] = str(error)
    return found


@pytest.mark.parametrize("name", ["ads.csv", "ads.tsv", "ads.jsonl"])
def test_a_row_becomes_a_record_of_the_files_beside_the_table(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "figures/a.png")
    picture(tmp_path / "cut/a.png", "RGBA", seed=1)
    row = {"image": "figures/a.png", "product": "cut/a.png", "title": 'Oak "chair", 49\u2033\nbrown', "note": "x"}
    ads = Table(table(tmp_path, [row], name), FIELDS)
    (only,) = ads
    record = ads.read(only)
    assert (only.number, only.key) == (1, "figures/a.png")
    assert set(record) == {"key", "image", "product", "title"}
    assert record["title"] == row["title"]
    for field, file in (("image", "figures/a.png"), ("product", "cut/a.png")):
        pixels = np.asarray(Image.open(tmp_path / file)).transpose(2, 0, 1)
        assert record[field].dtype == np.uint8
        np.testing.assert_array_equal(record[field], pixels)


def test_the_key_column_names_rows_and_its_first_use_wins(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    rows = [{"key": key, "image": image} for key, image in (("1", "a.png"), ("2", "a.png"), ("1", "b.png"))]
    ads = Table(table(tmp_path, rows), frozenset())
    assert problems(ads) == {3: "duplicate key, first used in row 1"}
    assert problems(ads) == {3: "duplicate key, first used in row 1"}, "a second reading starts afresh"


def test_every_bad_row_is_told_apart_and_none_stops_the_reading(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    picture(tmp_path / "cut.png", "RGBA")
    picture(tmp_path / "tall.png", "RGBA", (8, 12))
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:150])
    (tmp_path / "text.png").write_text("no picture")
    lines = [
        "key,image,product,title",
        "1,good.png,cut.png,chair",
        "2,none.png,cut.png,chair",
        "3,half.png,cut.png,chair",
        "4,text.png,cut.png,chair",
        "5,good.png,good.png,chair",
        "6,good.png,tall.png,chair",
        "7,good.png,cut.png,",
        "8,good.png,cut.png",
        "9,good.png,cut.png,chair,more",
        '10,good.png,cut.png,"chair" "s',
        ",good.png,cut.png,chair",
        "12,good.png,cut.png,cha\udcffir",
        "",
        "13,good.png,cut.png,chair",
    ]
    file = tmp_path / "ads.csv"
    file.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    found = problems(Table(file, FIELDS))
    assert sorted(found) == list(range(2, 13))
    words = ["no such file", "truncated", "cannot identify", "alpha", "canvas", "no title", "3 cells", "5 cells"]
    for number, word in zip(range(2, 13), [*words, "is malformed", "no key", "UTF-8"], strict=True):
        assert word in found[number], (number, found[number])
    assert problems(Table(file, FIELDS)) == found, "no address or other chance stands in a reason"


def test_a_quote_that_never_closes_is_told_with_the_lines_that_it_swallows(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = tmp_path / "ads.CSV"
    file.write_text('\nkey,image\n1,a.png\n2,"a.png\n3,a.png\n4,a.png\n')
    found = problems(Table(file, frozenset()))
    assert list(found) == [2]
    assert "is malformed, from line 4 on" in found[2]
    (tmp_path / "torn.csv").write_text('"key,image\n1,a.png\n')
    with pytest.raises(ValueError, match=r"torn\.csv, line 1: no header"):
        Table(tmp_path / "torn.csv", frozenset())


def test_bad_lines_of_jsonl(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines = ['{"image": "a.png", "key": 7}', "{", "[1]", "", '{"key": "x", "image": null}', '{"image": "\\ud800"}']
    file = tmp_path / "ads.jsonl"
    file.write_text("\n".join(lines))
    ads = Table(file, frozenset())
    assert next(iter(ads)).key == "7"
    found = problems(ads)
    assert sorted(found) == [2, 3, 4, 5]
    assert [word in found[n] for n, word in ((2, "JSON"), (3, "object"), (4, "no image"), (5, "UTF-8"))] == [True] * 4
    file.write_text('{"image": "a.png", "title": ["a"]}\n{"image": "a.png", "title": NaN}\n')
    found = problems(Table(file, frozenset({"title"})))
    assert found == {1: "title: a list, not a text", 2: "title: nan, not a text"}


def test_a_product_that_shows_nothing_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Image.new("RGBA", (12, 8), (255, 0, 0, 127)).save(tmp_path / "clear.png")
    ads = Table(table(tmp_path, [{"image": "a.png", "product": "clear.png"}]), frozenset({"product"}))
    assert "its alpha is empty: nowhere above 127 of 255" in problems(ads)[1]


def test_sizes_that_were_rounded_are_one_canvas(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", size=(1940, 90))
    picture(tmp_path / "b.png", "RGBA", (1940, 90))
    ads = Table(table(tmp_path, [{"image": "a.png", "product": "b.png"}]), frozenset({"product"}))
    record = ads.read(next(iter(ads)), 1024)
    assert record["image"].shape == (3, 48, 1024)
    assert record["product"].shape == (4, 48, 1024)


def test_suffixes_of_pictures_may_be_upper_case(tmp_path: Path) -> None:
    for name in ("image/a.PNG", "product/a.PNG", "image/b.tif", "product/b.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
        image.putpixel((0, 0), (0, 0, 0, 0))
        image.save(tmp_path / name)
    ads = Folder(tmp_path, frozenset({"product"}))
    assert [row.key for row in ads] == ["a", "b"]
    assert problems(ads) == {}


def test_a_table_that_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    file = table(tmp_path, [{"image": "a.png", "product": "b.png"}])
    with pytest.raises(
        ValueError, match=r"ads\.csv, line 1: the column title is missing; the table has image, product"
    ):
        Table(file, FIELDS)
    with pytest.raises(ValueError, match=r"no\.csv: file not found"):
        Table(tmp_path / "no.csv", FIELDS)
    with pytest.raises(ValueError, match=r"\.csv, \.tsv, \.jsonl, not '\.txt'"):
        Table(tmp_path / "ads.txt", FIELDS)
    with pytest.raises(ValueError, match="a row has no field heatmaps"):
        Table(file, frozenset({"heatmaps"}))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="the table has no header"):
        Table(tmp_path / "empty.csv", FIELDS)
    (tmp_path / "twice.csv").write_text("image,image\n")
    with pytest.raises(ValueError, match="twice"):
        Table(tmp_path / "twice.csv", frozenset())


def test_a_folder_holds_a_subfolder_per_field_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.png", "d.png"):
        picture(tmp_path / "image" / name)
    (tmp_path / "image/notes.txt").touch()
    for stem in "abd":
        picture(tmp_path / f"product/{stem}.webp", "RGBA")
    (tmp_path / "title").mkdir()
    for stem, text in (("a", "oak chair\n"), ("b", "pine chair"), ("d", " ")):
        (tmp_path / f"title/{stem}.txt").write_text(text)
    ads = Folder(tmp_path, FIELDS)
    assert [row.key for row in ads] == ["a", "b", "c", "d"]
    assert ads.total == 4
    assert ads.read(next(iter(ads)))["title"] == "oak chair"
    assert problems(ads) == {
        3: "no such image (.png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff, .gif)",
        4: "the file is empty",
    }


def test_a_flat_folder_does_for_pictures_alone_and_same_stems_clash(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    assert problems(Folder(tmp_path, frozenset())) == {2: "duplicate key, first used in row 1"}
    with pytest.raises(ValueError, match="subfolder image, product, title is missing"):
        Folder(tmp_path, FIELDS)


def test_the_cells_of_a_row_are_texts_and_paths_relative_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    rows = [
        {"image": "1.png", "product": "../cut.png", "title": "Chair"},
        {"image": "2.png", "product": "", "title": "Lamp"},
    ]
    ads, fields = Table(table(tmp_path / "a", rows), frozenset({"title"})), ("product", "title", "prompt")
    first, second = ads
    assert ads.cells(first, fields, tmp_path / "b") == {"product": "../cut.png", "title": "Chair"}
    assert ads.cells(second, fields, tmp_path / "b") == {"title": "Lamp"}
    picture(tmp_path / "set/image/x.png")
    picture(tmp_path / "set/product/x.webp", "RGBA")
    (tmp_path / "set/title").mkdir()
    (tmp_path / "set/title/x.txt").write_text("Chair")
    (row,) = folder = Folder(tmp_path / "set", frozenset({"product", "title"}))
    assert folder.cells(row, fields, tmp_path) == {"product": "set/product/x.webp", "title": "Chair"}


def test_the_fingerprint_follows_the_rows(tmp_path: Path) -> None:
    picture(tmp_path / "f/a.png")
    file = table(tmp_path, [{"image": "f/a.png"}])
    before = Table(file, frozenset()).fingerprint, Folder(tmp_path / "f", frozenset()).fingerprint
    assert before == (Table(file, frozenset()).fingerprint, Folder(tmp_path / "f", frozenset()).fingerprint)
    with file.open("a") as handle:
        handle.write("f/b.png\n")
    picture(tmp_path / "f/b.png")
    after = Table(file, frozenset()).fingerprint, Folder(tmp_path / "f", frozenset()).fingerprint
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_product_of_another_size_is_put_on_the_canvas_without_bleeding(tmp_path: Path) -> None:
    pixels = np.zeros((16, 24, 4), np.uint8)
    pixels[..., 0] = 255  # red everywhere, also where it is transparent
    pixels[:, 12:] = (0, 255, 0, 255)  # the product is green
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    product = read_image(tmp_path / "cut.png", "product", (12, 8))
    assert product.shape == (4, 8, 12)
    seen = product[3] > 0
    assert seen.mean() > 0.4
    assert (product[1][seen] > 200).all()
    assert (product[0][seen] < 50).all()


def test_16_bit_depth_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_image(tmp_path / "d.png", "depth")[0], [[0, 100], [200, 255]])


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        file = tmp_path / f"{rows}.csv"
        file.write_text("key,image\n" + "".join(f"picture-{i:030},a.png\n" for i in range(rows)))
        tracemalloc.start()
        try:
            assert sum(not row.problem for row in Table(file, frozenset())) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(1_000)
    assert peak(20_000) < few + 400_000  # a set of the keys alone would take three million bytes
