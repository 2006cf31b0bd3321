import os
from pathlib import Path

import numpy as np
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
