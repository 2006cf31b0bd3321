import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.tables import TableReader

NEEDS = ("key", "image", "product", "title")
CELLS = {"key": "a", "image": "ad.jpg", "product": "box.png", "title": "Red Box, 30 cm"}


def written(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", "; "])
def test_a_table_is_read_however_its_cells_are_separated(tmp_path: Path, separator: str) -> None:
    row = separator.join(f'"{cell}"' if "," in cell else cell for cell in CELLS.values())
    file = written(tmp_path / "ads.csv", f"\ufeff\r\n{separator.join(CELLS)}\r\n{row}\r\n\r\n")
    table = TableReader(file, NEEDS)
    assert table.columns == [*NEEDS]
    for _ in range(2):  # anew each time
        assert [*table] == [(3, CELLS, "")]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=2, max_size=2)
    ),
    st.sampled_from([".csv", ".tsv", ".jsonl"]),
)
def test_what_is_written_is_read(tmp_path_factory, rows: list[list[str]], suffix: str) -> None:
    file = tmp_path_factory.mktemp("t") / f"t{suffix}"
    records = [dict(zip(("key", "title"), row, strict=True)) for row in rows]
    with file.open("w", newline="", encoding="utf-8") as handle:
        if suffix == ".jsonl":
            handle.writelines(json.dumps(record) + "\n" for record in records)
        else:
            writer = csv.writer(handle, delimiter={".csv": ",", ".tsv": "\t"}[suffix], quoting=csv.QUOTE_ALL)
            writer.writerows([["key", "title"], *rows])
    read = [*TableReader(file, ["key"])]
    assert [row.cells for row in read] == records
    assert not any(row.problem for row in read)


@pytest.mark.parametrize(
    ("name", "text", "encoding", "told"),
    [
        ("utf16.csv", "key,image\n", "utf-16", "utf16.csv, line 1: not UTF-8; it looks like UTF-16"),
        ("utf16.jsonl", '{"key": 1}', "utf-16-le", "utf16.jsonl, line 1: not UTF-8; it looks like UTF-16"),
        (
            "late.csv",
            "\n\nkey,name\n",
            "utf-8",
            "late.csv, line 3: the column image, product, title is missing; .* key, name",
        ),
        ("torn.csv", '\n"key,image\n', "utf-8", "torn.csv, line 2: no header"),
        ("empty.csv", "", "utf-8", "empty.csv, line 1: the column key, .*; the table has no header"),
        ("twice.csv", "key;image;product;title;key\n", "utf-8", "twice.csv, line 1: has the column 'key' twice"),
        ("bell.csv", "k\aey,x\n", "utf-8", "bell.csv, line 1: .* the table has k\aey, x"),
        ("table.xlsx", "key", "utf-8", r"table.xlsx: a table is .csv, .tsv, .jsonl, not '.xlsx'"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_with_its_line(tmp_path: Path, name, text, encoding, told) -> None:
    with pytest.raises(ValueError, match=told):
        TableReader(written(tmp_path / name, text, encoding), NEEDS)


def test_bad_rows_are_told_and_the_others_read(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b'key,title\na,caf\xe9\nb,"x\ny"\nc\nd,"e" f\ng,h\n')
    rows = {row.line: row for row in TableReader(file, ["key"])}
    assert {line: row.problem.partition(":")[0] for line, row in rows.items()} == {
        2: "is not UTF-8",
        4: "",
        5: "has 1 cells for 2 columns",
        6: "is malformed",
        7: "",
    }
    assert rows[4].cells == {"key": "b", "title": "x\ny"}
    latin = {row.line: row.cells.get("title") for row in TableReader(file, ["key"], "latin-1")}
    assert latin[2] == "caf\u00e9"


def test_values_of_json_are_texts_or_numbers(tmp_path: Path) -> None:
    lines = [
        '{"key": 7, "title": null, "size": 1.5}',
        '{"key": "list", "title": ["Red Box"]}',
        '{"key": "nan", "title": NaN}',
        '{"key": "bool", "title": true}',
        '{"key": "dict", "title": {}}',
        '{"title": "x"}',
        "[1]",
        "{",
    ]
    rows = [*TableReader(written(tmp_path / "t.jsonl", "\n".join(lines)), ["key"])]
    assert rows[0] == (1, {"key": "7", "title": "", "size": "1.5"}, "")
    assert [row.problem for row in rows[1:6]] == [
        "title: a list, not a text",
        "title: nan, not a text",
        "title: true or false, not a text",
        "title: an object, not a text",
        "has no key, only title",
    ]
    assert all(row.problem.startswith("is not a JSON object (") for row in rows[6:])
