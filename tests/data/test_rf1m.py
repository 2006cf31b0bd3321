import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

from src.build import build
from src.config import compose
from src.data.archive import Images
from src.data.batch import CLASSES, collate
from src.data.rf1m import RF1M, Rows, write_example

EVERYTHING = {"products": "products", "titles": "titles.csv", "depth": "depth", "saliency": "saliency"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_example(tmp_path / "rf1m", count=12, size=24)


def source(root: Path, **words) -> RF1M:
    return RF1M(str(root), **{"size": 16, "val": 0, "test": 0, **words})


def keys(rows: Rows) -> list[str]:
    return [rows[index]["key"] for index in range(len(rows))]


def edit(path: Path, line: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


def quarantined(path: Path) -> list[tuple[str, int, str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(Path(row["file"]).name, row["line"], row["key"], row["reason"]) for row in rows]


def pack(root: Path, kind: str) -> None:
    """Moves every part_* folder into an archive of its own."""
    for part in sorted(root.glob("part_*")):
        files = sorted(part.iterdir())
        if kind == "tar":
            with tarfile.open(f"{part}.tar", "w") as archive:
                for file in files:
                    archive.add(file, f"./{part.name}/{file.name}")
        else:
            with zipfile.ZipFile(f"{part}.zip", "w") as archive:
                for number, file in enumerate(files):
                    archive.write(file, file.name, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2])
        shutil.rmtree(part)


def test_records_carry_the_configured_modalities(root):
    plain, full = source(root), source(root, **EVERYTHING)
    assert plain.fields == {"key", "label", "image"}
    assert full.fields == {"key", "label", "image", "product", "depth", "saliency", "title", "prompt"}
    batch = collate([full.split("train")[index] for index in range(10)])
    assert set(batch) == full.fields
    assert batch["product"].shape == (10, 4, 16, 16)
    assert batch["depth"].shape == (10, 1, 16, 16)
    assert batch["key"][:2] == ["part_00/sku000000.jpg", "part_02/sku000002.jpg"]  # line 2 is unsuitable
    assert batch["title"][1].startswith("Box No. 2 ")
    # the cut-out and the map are of the same product: they cover the same pixels
    assert ((batch["product"][:, 3:] > 127) == (batch["saliency"] > 127)).float().mean() > 0.97


@pytest.mark.parametrize("others", [("products", "depth", "saliency"), ("products",), ("depth",)])
def test_a_missing_image_is_never_another_file_of_its_stem(root, others):
    for folder in {"products", "depth", "saliency"} - set(others):
        shutil.rmtree(root / folder)
    (root / "part_00/sku000000.jpg").unlink()
    with pytest.raises(ValueError, match=r"label\.txt, line 1, .*: no image of this name \(data\.on_error=skip leaves"):
        source(root)
    assert len(source(root, on_error="skip").split("train")) == 9  # of 10 with a class of the paper


def test_labels_are_dropped_or_classed_as_named(root):
    dropped, classed = source(root), source(root, unsuitable="class")
    assert dropped.classes == CLASSES
    assert dropped.counts["unsuitable"] == 2
    assert [row["label"] for row in dropped.split("train")] == [0, 1, 2, 3, 4] * 2
    assert classed.classes == (*CLASSES, "unsuitable")
    assert [row["label"] for row in classed.split("train")] == [0, 5, 1, 2, 3, 4] * 2


def test_a_label_map_renumbers_and_names_are_read_however_written(root):
    text = (root / "label.txt").read_text().splitlines()
    names = ["available", "Unsuitable", "Space Mismatch", "size-mismatch", "INDISTINCTIVENESS", "Shape_Hallucination"]
    (root / "names.txt").write_text("\n".join(f"{line[:-1]}{names[int(line[-1]) - 1]}" for line in text))
    (root / "zero.txt").write_text("\n".join(f"{line[:-1]}{int(line[-1]) - 1}" for line in text))
    zero = {0: "available", "1": "unsuitable", **dict(enumerate(CLASSES[1:], 2))}
    expected = source(root).label
    assert (source(root, labels="names.txt").label == expected).all()
    assert (source(root, labels="zero.txt", label_map=zero).label == expected).all()
    with pytest.raises(ValueError, match=r"class 'good'; the classes are available"):
        source(root, label_map={1: "good"})


@pytest.mark.parametrize("separator", ["\t", ",", "   ", " | "])
def test_separators(root, separator):
    text = (root / "label.txt").read_text().replace("\t", separator)
    (root / "label.txt").write_text(f"\ufeffimage{separator}label\n\n{text}", encoding="utf-8")
    words = {"separator": "|"} if "|" in separator else {}
    assert source(root, header=True, **words).lines.tolist() == list(range(3, 15))
    with pytest.raises(ValueError, match=r"label.txt, line 1, 'image': unknown label 'label'.*1, 2.*available"):
        source(root, **words)


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
@pytest.mark.parametrize("name", ["white box {}.jpg", "white,box {}.jpg", "white\tbox {}.jpg"])
def test_names_may_hold_separators_for_the_label_is_the_last_cell(root, separator, name):
    lines = []
    for number, path in enumerate(sorted(root.glob("part_*/*.jpg"))):
        path.rename(path.with_name(name.format(number)))
        lines.append(f"{path.parent.name}\\{name.format(number)}{separator}{1 if number else 'space_mismatch'}\n")
    (root / "label.txt").write_text("".join(lines))
    record = source(root).split("train")[0]
    assert record["key"] == f"part_00/{name.format(0)}"
    assert record["label"] == 1


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_give_the_records_of_the_folder(root, kind):
    def records(rows: Rows) -> list[dict]:
        return [rows[index] for index in range(len(rows))]

    expected = records(source(root, **EVERYTHING).split("train"))
    pack(root, kind)
    for _ in range(2):  # the second time from the index
        packed = source(root, **EVERYTHING)
        np.testing.assert_equal(records(packed.split("train")), expected)
    assert len(list(root.glob("*.index.npz"))) == 4
    folder = "part_03/" if kind == "tar" else ""
    assert packed.images["image"].where(3) == f"{root}/part_03.{kind}:{folder}sku000003.jpg"
    one = source(root, images=f"part_0[02].{kind}", on_error="skip", verify="none")
    assert keys(one.split("train"))[:2] == ["part_00/sku000000.jpg", "part_02/sku000002.jpg"]


@pytest.mark.parametrize("cache", [None, "cache"])
def test_a_changed_archive_is_indexed_again(root, cache):
    words = {"cache": str(root / cache)} if cache else {}
    pack(root, "zip")
    source(root, **words)
    assert len(list((root / cache if cache else root).glob("part_00.zip.*index.npz"))) == 1
    Image.new("RGB", (24, 24)).save(root / "new.png")
    with zipfile.ZipFile(root / "part_00.zip", "a") as archive:
        archive.write(root / "new.png", "late.png")
    (root / "new.png").unlink()
    with open(root / "label.txt", "a") as file:
        file.write("part_00/late.png\t1\n")
    assert keys(source(root, **words).split("train"))[-1] == "part_00/late.png"


def test_an_index_that_is_damaged_or_cannot_be_written_does_no_harm(root):
    pack(root, "tar")
    (root / "part_00.tar.index.npz").write_bytes(b"PK junk")
    (root / "part_01.tar.index.npz").mkdir()
    with pytest.warns(UserWarning, match=r"part_01\.tar\.index\.npz cannot be written .*data\.cache="):
        assert len(source(root).split("train")) == 10


def test_a_damaged_member_of_a_zip_archive_is_named(root):
    for file in root.glob("part_01/*.jpg"):
        Image.new("RGB", (24, 24)).save(file.with_suffix(".bmp"))  # whatever its pixels are, they can be decoded
        file.unlink()
    pack(root, "zip")
    labels = (root / "label.txt").read_text()
    (root / "label.txt").write_text(re.sub(r"(part_01/\w+)\.jpg", r"\1.bmp", labels))
    archive = root / "part_01.zip"
    data = bytearray(archive.read_bytes())
    data[200:210] = bytes(range(1, 11))
    archive.write_bytes(data)
    rows = source(root, unsuitable="class").split("train")
    with pytest.raises(ValueError, match=r"label\.txt, line 2, .*part_01\.zip:sku000001\.bmp: .*damaged.*\(CRC\)"):
        rows[1]
    assert rows[5]["key"] == "part_01/sku000005.bmp"
    skipping = source(root, on_error="skip", verify="all", unsuitable="class")
    assert len(skipping.split("train")) == 11
    assert [row[1] for row in quarantined(root / "quarantine.jsonl")] == [2]


@pytest.mark.parametrize(
    ("kind", "damage"), [("tar", "cut"), ("tar", "junk"), ("zip", "cut"), ("zip", "junk"), ("zip", "encrypted")]
)
def test_damaged_archives(root, kind, damage):
    pack(root, kind)
    archive = root / f"part_01.{kind}"
    data = bytearray(archive.read_bytes())
    if damage == "encrypted":
        data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes({"cut": data[:700], "junk": b"junk" * 300, "encrypted": data}[damage])
    with pytest.raises(ValueError, match=rf"part_01\.{kind}: the archive is damaged \("):
        source(root)
    skipping = source(root, on_error="skip")
    assert len(skipping.split("train")) == 8  # part_01 held lines 2 (unsuitable), 6 and 10
    assert (archive.name, 0) in [row[:2] for row in quarantined(root / "quarantine.jsonl")]
    assert not (root / f"{archive.name}.index.npz").exists()


def test_what_is_whole_of_a_damaged_tar_archive_is_used(root):
    pack(root, "tar")
    archive = root / "part_01.tar"
    with tarfile.open(archive) as tar:
        second = tar.getmembers()[1]
    archive.write_bytes(archive.read_bytes()[: second.offset_data + 100])
    assert len(source(root, on_error="skip", verify="all", unsuitable="class").split("train")) == 10
    lost = [("part_01.tar", 0), ("label.txt", 6), ("label.txt", 10)]  # cut short, and missing
    assert sorted(row[:2] for row in quarantined(root / "quarantine.jsonl")) == sorted(lost)


def test_archives_of_other_kinds_must_be_unpacked(root):
    (root / "late").mkdir()
    (root / "late/part.tar.gz").write_bytes(b"")
    assert len(source(root).split("train")) == 10  # an old one does no harm
    with pytest.raises(ValueError, match=r"late: no image .* other archives must be unpacked"):
        source(root, images="late")


def test_a_map_in_colors_is_rejected_by_file_name(root):
    gray = Image.open(root / "depth/sku000000.png")
    gray.convert("RGB").save(root / "depth/sku000000.png")
    assert source(root, depth="depth").split("train")[0]["depth"].shape == (1, 16, 16)
    Image.merge("RGB", [gray, gray.point(lambda v: 255 - v), gray]).save(root / "depth/sku000000.png")
    with pytest.raises(ValueError, match=r"line 1, .*depth/sku000000\.png: a map must be gray, .* in colors \(RGB\)"):
        source(root, depth="depth").split("train")[0]


def break_in_every_way(root: Path) -> list[tuple[int, str]]:
    """Breaks lines of an example of 12 rows; the lines and what must be said of each."""
    (root / "part_02" / "sku000002.jpg").unlink()
    edit(root / "label.txt", 4, "part_03/sku000003.jpg\t9")
    edit(root / "label.txt", 5, "part_00/sku000000.jpg\t1")
    (root / "part_01" / "sku000005.jpg").write_bytes(b"no image")
    edit(root / "label.txt", 7, "part_02/sku000006.jpg")
    Image.new("RGB", (24, 24)).save(root / "products" / "sku000008.png")
    Image.new("L", (24, 12)).save(root / "depth" / "sku000009.png")
    (root / "saliency" / "sku000010.png").unlink()
    edit(root / "titles.csv", 13, "sku000011,,")
    return [
        (3, "no image of this name"),
        (4, "unknown label '9'"),
        (5, "duplicate key, first in line 1"),
        (6, "sku000005.jpg: cannot identify image file"),
        (7, "no label"),
        (9, "products/sku000008.png: a product needs an alpha channel, this one is RGB"),
        (10, "depth/sku000009.png: depth is 24x12, but its image is 24x24"),
        (11, "no saliency of this name"),
        (12, "no title of this name"),
    ]


def test_skip_lists_every_bad_row_and_goes_on(root, tmp_path):
    expected = break_in_every_way(root)
    skipping = source(root, **EVERYTHING, on_error="skip", quarantine=str(tmp_path / "bad.jsonl"), verify="all")
    listed = sorted(quarantined(tmp_path / "bad.jsonl"), key=lambda row: row[1])
    assert [row[1] for row in listed] == [line for line, _ in expected]
    for (file, _, _, reason), (_, text) in zip(listed, expected, strict=True):
        assert file == "label.txt"
        assert text in reason
    assert skipping.counts["quarantined"] == 9
    assert keys(skipping.split("train")) == ["part_00/sku000000.jpg"]  # lines 2 and 8 are unsuitable


@pytest.mark.parametrize("number", range(9))
def test_raise_names_file_line_and_value(root, number):
    pristine = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    line, text = break_in_every_way(root)[number]
    bad = (root / "label.txt").read_text().splitlines()[line - 1]
    stem = f"sku{line - 1:06d}"
    for path, data in pristine.items():  # mend all but this one
        if path.stem != stem and path.name not in ("label.txt", "titles.csv"):
            path.write_bytes(data)
    (root / "label.txt").write_bytes(pristine[root / "label.txt"])
    edit(root / "label.txt", line, bad)
    if line != 12:
        (root / "titles.csv").write_bytes(pristine[root / "titles.csv"])
    with pytest.raises(ValueError, match=rf"line {line}, ") as error:
        list(source(root, **EVERYTHING).split("train"))  # pyright: ignore[reportArgumentType]
    assert f"label.txt, line {line}, '{bad.split(chr(9))[0]}': " in str(error.value)
    assert text in str(error.value)
    with pytest.raises(ValueError, match=f"line {line}, "):
        source(root, **EVERYTHING, verify="all")


def test_an_image_cut_short_is_found_by_verifying_or_replaced_while_reading(root):
    path = root / "part_02" / "sku000002.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"label.txt, line 3, .*sku000002.jpg: .*truncated"):
        source(root).split("train")[1]
    with pytest.raises(ValueError, match=r"label.txt, line 3, .*sku000002.jpg: .*truncated"):
        source(root, verify="all")
    rows = source(root, on_error="skip").split("train")
    assert quarantined(root / "quarantine.jsonl") == []
    assert keys(rows)[:3] == ["part_00/sku000000.jpg", "part_03/sku000003.jpg", "part_03/sku000003.jpg"]
    assert keys(rows)[-1] == rows[-1]["key"] == "part_03/sku000011.jpg"
    assert [row[1] for row in quarantined(root / "quarantine.jsonl")] == [3]  # once, however often it is met
    with pytest.raises(IndexError):
        _ = rows[len(rows)]
    assert len(source(root, on_error="skip", verify="all").split("train")) == 9
    (root / "test.txt").write_text("part_02/sku000002.jpg\npart_03/sku000003.jpg\n")
    tested = source(root, on_error="skip", split_files={"test": "test.txt"})  # a stand-in would count twice in a metric
    assert keys(tested.split("test")) == ["part_03/sku000003.jpg"]
    assert tested.counts["quarantined"] == 1


def test_verification_opens_only_what_changed(root, monkeypatch):
    source(root, verify="all")
    assert (root / "label.txt.verified.npz").exists()
    (root / "part_00" / "sku000004.jpg").write_bytes(b"")
    read, seen = Images.read, []
    monkeypatch.setattr(Images, "read", lambda self, row: seen.append(bytes(self.names[row])) or read(self, row))
    with pytest.raises(ValueError, match=r"line 5, "):
        source(root, verify="all")
    assert set(seen) == {b"part_00/sku000004.jpg"}


def test_rows_without_a_required_product_are_counted_out(root):
    for number in (2, 3, 5):
        (root / "products" / f"sku{number:06d}.png").unlink()
    with pytest.raises(ValueError, match=r"line 3, .*no product of this name"):
        source(root, products="products")
    required = source(root, products="products", require=["product"])
    assert required.counts["without product"] == 3
    assert len(required.split("train")) == 7
    with pytest.raises(ValueError, match=r"require=depth: choose one of product"):
        source(root, products="products", require=["depth"])


def test_stems_shared_between_folders_are_told_apart_by_folder(root):
    for number, part in enumerate(sorted(root.glob("part_*"))):
        Image.new("RGB", (24, 24), (number * 50, 0, 0)).save(part / "same.png")
    (root / "label.txt").write_text("".join(f"part_{number:02d}/same.png\t1\n" for number in range(4)))
    rows = source(root).split("train")
    assert [int(row["image"][0].max()) for row in rows] == [0, 50, 100, 150]
    pack(root, "zip")
    assert [int(row["image"][0].max()) for row in source(root).split("train")] == [0, 50, 100, 150]
    (root / "label.txt").write_text("same.png\t1\n")
    with pytest.raises(ValueError, match=r"line 1, 'same.png': more than one image of this name"):
        source(root)


def test_split_files(root):
    (root / "val.txt").write_text("part_00/sku000000.jpg\nsku000001\n\n")  # the second is dropped as unsuitable
    (root / "test.txt").write_text("sku000002.jpg\n")
    files = source(root, split_files={"val": "val.txt", "test": "test.txt"})
    assert keys(files.split("val")) == ["part_00/sku000000.jpg"]
    assert keys(files.split("test")) == ["part_02/sku000002.jpg"]
    assert len(files.split("train")) == 8
    (root / "test.txt").write_text("sku000003.jpg\nsku000000.jpg\n")
    with pytest.raises(ValueError, match=r"test.txt, line 2: 'sku000000.jpg' is also in val"):
        source(root, split_files={"val": "val.txt", "test": "test.txt"})


@pytest.mark.parametrize(("kind", "context", "workers"), [("tar", "spawn", 1), ("tar", "fork", 2), ("zip", "fork", 2)])
def test_workers_read_what_the_main_process_reads(root, kind, context, workers):
    pack(root, kind)
    rows = source(root, **EVERYTHING).split("train")
    loader = DataLoader(rows, batch_size=4, num_workers=workers, multiprocessing_context=context, collate_fn=list)
    np.testing.assert_equal([row for batch in loader for row in batch], [*rows])


@pytest.mark.parametrize("suffix", ["tsv", "jsonl"])
def test_title_tables(root, suffix):
    lines = [line.split(",") for line in (root / "titles.csv").read_text().splitlines()]
    if suffix == "tsv":
        text = "\n".join("\t".join(line) for line in lines)
    else:
        text = "\n".join(json.dumps(dict(zip(lines[0], line, strict=True))) for line in lines[1:])
    (root / f"titles.{suffix}").write_text(text)
    expected = [row["title"] for row in source(root, titles="titles.csv").split("train")]
    assert [row["title"] for row in source(root, titles=f"titles.{suffix}").split("train")] == expected
    (root / f"titles.{suffix}").write_text("name\ttitle\na\tb\n" if suffix == "tsv" else '{"name": "a", "title": "b"}')
    with pytest.raises(
        ValueError, match=f"titles.{suffix}, line 1.*(column key is missing.* has|no key, only) name, title"
    ):
        source(root, titles=f"titles.{suffix}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"unsuitable": "keep"}, "unsuitable=keep: choose one of drop, class"),
        ({"fit": "crop"}, "fit=crop: choose one of squash, pad"),
        ({"on_error": "ignore"}, "on_error=ignore: choose one of raise, skip"),
        ({"products": "cutouts"}, "cutouts: no such folder or archive"),
        ({"labels": "labels.txt"}, "labels.txt: there is no such label file"),
        ({"titles": "titles.xls"}, "titles.xls: there is no such table of titles"),
    ],
)
def test_words_are_checked(root, words, text):
    with pytest.raises(ValueError, match=text):
        source(root, **words)


def test_the_yaml_builds_the_data_module(root):
    node = OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / "rf1m.yaml")
    node.update(root=str(root), depth="depth", saliency="saliency", size=16, batch_size=4)
    data = build(node)
    assert data.source.fields == {"key", "label", "image", "product", "depth", "saliency", "title", "prompt"}
    assert data.batch_size == 4
    assert not data.lacking


def test_labels_are_renumbered_on_the_command_line(root):
    (root / "label.txt").write_text("part_00/sku000000.jpg\t0\npart_01/sku000001.jpg\t4\n")
    words = ["data=rf1m", f"data.root={root}", "data.label_map={0: available, 4: shape_hallucination}"]
    words += ["data.titles=null", "data.products=null", "data.val=0", "data.test=0"]
    data = build(compose("fit", ["model=rfnet", *words]).data)
    assert [row["label"] for row in data.split("train")] == [0, 4]


def test_titles_in_another_encoding(root):
    table = (root / "titles.csv").read_text().replace("Box", "北欧木箱")
    (root / "titles.csv").write_bytes(table.encode("gb18030"))
    rows = source(root, titles="titles.csv", titles_encoding="gb18030").split("train")
    assert rows[0]["title"].startswith("北欧木箱 No. 0")
    with pytest.raises(ValueError, match=r"titles\.csv, line 2, .*is not UTF-8; data\.titles_encoding="):
        source(root, titles="titles.csv")
    with pytest.raises(ValueError, match="unknown encoding 'klingon'"):
        source(root, titles="titles.csv", titles_encoding="klingon")
    with pytest.raises(ValueError, match=r"no such table of titles; data\.titles=null"):
        source(root, titles="none.csv")


def test_torn_rows_of_a_titles_table_are_listed_and_the_rest_is_read(root, tmp_path):
    edit(root / "titles.csv", 3, "sku000001,Chair, oak, large,a chair")
    edit(root / "titles.csv", 4, 'sku000002,"Chair" 2,a chair')
    with pytest.raises(ValueError, match=r"titles\.csv, line 3, 'sku000001': has 5 cells for 3 columns"):
        source(root, titles="titles.csv")
    bad = tmp_path / "bad.jsonl"
    rows = source(root, titles="titles.csv", on_error="skip", quarantine=str(bad), verify="none", unsuitable="class")
    listed = quarantined(bad)
    assert [row[:2] for row in listed if row[0] == "titles.csv"] == [("titles.csv", 3), ("titles.csv", 4)]
    assert {"part_01/sku000001.jpg", "part_02/sku000002.jpg"} == {row[2] for row in listed if row[0] == "label.txt"}
    assert len(rows.split("train")) == 10


def test_what_was_found_good_is_noted_even_if_the_search_ends_in_an_error(root, monkeypatch):
    (root / "part_03" / "sku000011.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="line 12, "):
        source(root, verify="all")
    read, seen = Images.read, []
    monkeypatch.setattr(Images, "read", lambda self, row: seen.append(bytes(self.names[row])) or read(self, row))
    with pytest.raises(ValueError, match="line 12, "):
        source(root, verify="all")
    assert set(seen) == {b"part_03/sku000011.jpg"}


def test_a_list_of_bad_rows_that_cannot_be_written_is_one_error(root):
    (root / "part_00" / "sku000000.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"list of bad rows .* cannot be written .*data\.quarantine=FILE"):
        source(root, on_error="skip", quarantine=str(root / "label.txt" / "bad.jsonl"))


def test_a_jpeg_far_larger_than_needed_is_decoded_at_a_fraction_and_looks_the_same(root):
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    large = Image.fromarray(noise).resize((768, 768), Image.Resampling.BICUBIC)
    large.save(root / "part_00" / "sku000000.jpg", quality=95)
    seen = source(root, size=96).split("train")[0]["image"].astype(int)
    whole = np.asarray(large.resize((96, 96), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert abs(seen - whole).mean() < 3
