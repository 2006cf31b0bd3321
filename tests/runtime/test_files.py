import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.runtime.files import atomic, check_names, check_outside, new_file, new_folder, write_json

ROOT = Path(__file__).parents[2]
KILLED = """
import os, sys
from pathlib import Path
from src.runtime.files import atomic
with atomic(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "metrics.json"
    write_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    with pytest.raises(ZeroDivisionError), atomic(file) as part:
        part.write_text(str(1 / 0))
    subprocess.run([sys.executable, "-c", KILLED, str(file)], cwd=ROOT, check=False)
    assert json.loads(file.read_text()) == {"a": 1}
    write_json(file, {"a": 2})
    assert [path.name for path in file.parent.iterdir()] == ["metrics.json"]  # what the kill left is gone


def test_processes_that_share_a_file_write_to_different_parts(tmp_path: Path) -> None:
    with atomic(tmp_path / "cache", shared=True) as part:
        assert str(os.getpid()) in part.name
        part.write_text("x")
    assert (tmp_path / "cache").read_text() == "x"


def test_each_key_has_a_file_of_its_own_within_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path)
    check_names(tmp_path / "out", {"a": "a.png", "b/a.jpg": "b/a.png", "..": "...png", "c..d": "c..d.png"})
    for key in ("../a", "b/../../a", "b/../a", "/etc/a", "link/a", "new/../link/a"):
        with pytest.raises(ValueError, match=rf"the key '{key}' points outside"):
            check_names(tmp_path / "out", {"x": "x.png", key: f"{key}.png"})
    for name in ("b/a.png", "./b/a.png", "b//a.png"):
        with pytest.raises(ValueError, match=r"the keys 'b/a.jpg' and 'b/a.webp' map to the same file"):
            check_names(tmp_path / "out", {"b/a.jpg": "b/a.png", "b/a.webp": name})


def test_a_new_folder_is_empty(tmp_path: Path) -> None:
    assert new_folder(tmp_path / "a/b") == tmp_path / "a/b"
    (tmp_path / "a/b/c").touch()
    with pytest.raises(ValueError, match="a/b is not empty"):
        new_folder(tmp_path / "a/b")


def test_a_new_file_is_nothing_yet_not_even_a_link(tmp_path: Path) -> None:
    assert new_file(str(tmp_path / "a")) == tmp_path / "a"
    (tmp_path / "a").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(ValueError, match="exists; choose another out, or remove it"):
            new_file(path)


def test_an_output_is_not_among_the_files_that_are_read(tmp_path: Path) -> None:
    check_outside("out", tmp_path / "ads2", tmp_path / "ads")
    for path in (tmp_path / "ads", tmp_path / "ads/image", tmp_path / "x/../ads/new"):
        with pytest.raises(ValueError, match=r"^out=.* is inside folder=.*, which is read; choose another out"):
            check_outside("out", path, tmp_path / "ads")
