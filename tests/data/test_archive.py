import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data.archive import NONE, SEVERAL, Images, match
from src.data.quarantine import Quarantine


def test_folders_then_the_suffix_decide_between_names_of_one_stem():
    names = [b"a/x/1.jpg", b"b/x/1.jpg", b"a/2.jpg", b"a/2.png", b"c/3.jpg", b"4.tar.png", b"5.jpg", b"d/5.jpg"]
    keys = [b"b/x/1.jpg", b"x/1.jpg", b"2.png", b"2", b"old/3.png", b"4.tar", b"6.jpg", b"5.jpg", b"e/d/5.png"]
    assert match(keys, names).tolist() == [1, SEVERAL, 3, SEVERAL, 4, 5, NONE, 6, 7]
    assert match(keys, names, moved=False).tolist() == [1, SEVERAL, 3, SEVERAL, NONE, 5, NONE, 6, NONE]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=30, unique=True))
def test_names_find_themselves(texts):
    names = list(dict.fromkeys(f"{text.replace('/', '')}#.png".encode() for text in texts))
    assert match(names, names).tolist() == list(range(len(names)))


def test_hidden_files_links_and_excluded_places_are_left_out(tmp_path: Path):
    for name in ("a.png", "in/b.PNG", ".c.png", ".git/d.png", "out/e.png", "__MACOSX/f.png", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    os.symlink(tmp_path, tmp_path / "in/round")
    keys = [f"{name}.png".encode() for name in "abcdef"]
    images = Images(tmp_path, ".", keys, [tmp_path / "out"], True, Quarantine(None))
    assert (images.found >= 0).tolist() == [True, True, False, False, False, False]
    assert images.where(1) == str(tmp_path / "in/b.PNG")
    assert images.read(1) == (tmp_path / "in/b.PNG").read_bytes()


def test_names_in_any_bytes_are_found(tmp_path: Path):
    name = "\u5546\u54c1.png".encode("gb18030")
    Image.new("RGB", (2, 2)).save(tmp_path / os.fsdecode(name), "PNG")
    images = Images(tmp_path, ".", [name], [], False, Quarantine(None))
    assert np.array_equal(images.found, [0])
    assert images.read(0) == (tmp_path / os.fsdecode(name)).read_bytes()


def test_a_member_that_inflates_to_more_than_an_image_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("src.data.archive.LARGEST", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.png", bytes(1 << 20))
        archive.writestr("bomb.png", bytes((1 << 20) + 1))
    images = Images(tmp_path, "a.zip", [b"large.png", b"bomb.png"], [], False, Quarantine(None))
    assert images.read(0) == bytes(1 << 20)
    with pytest.raises(OSError, match="inflates to more than 1 MiB"):
        images.read(1)


def test_archives_of_one_name_have_an_index_each_in_a_common_folder(tmp_path: Path):
    for place in "ab":
        (tmp_path / place).mkdir()
        with zipfile.ZipFile(tmp_path / place / "part.zip", "w") as archive:
            archive.writestr(f"{place}.png", place)
    made = {}
    for _ in range(2):  # the second time from the index
        images = Images(tmp_path, "[ab]/part.zip", [b"a.png", b"b.png"], [], False, Quarantine(None), f"{tmp_path}/c")
        assert [images.read(0), images.read(1)] == [b"a", b"b"]
        made = made or {file: file.stat().st_mtime_ns for file in (tmp_path / "c").iterdir()}
        assert {file: file.stat().st_mtime_ns for file in (tmp_path / "c").iterdir()} == made
    assert len(made) == 2


def test_a_list_of_bad_rows_replaces_no_other_file(tmp_path: Path):
    file = tmp_path / "list"
    for text in ("", '{"file": "a", "line": 1, "key": "b", "reason": "c"}\n'):
        file.write_text(text)
        Quarantine(file).write()
        assert file.read_text() == ""
    for text in ("a.jpg 1\n", "[1]\n", '{"key": "a"}\n'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"list is no list of bad rows; data\.quarantine=FILE"):
            Quarantine(file).write()
        assert file.read_text() == text
