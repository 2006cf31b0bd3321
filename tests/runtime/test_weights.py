"""Published weights are found, read safely, stripped of prefixes, loaded as a whole, and converted without running."""

import argparse
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from src.runtime import weights
from src.runtime.checkpoint import ROOT, read_weights
from src.runtime.convert import convert
from src.runtime.weights import fill_all, found, state_dict

NET = nn.Linear(2, 3)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


FOREIGN = {
    "argparse.Namespace": argparse.Namespace(lr=1.0),
    "omegaconf.listconfig.ListConfig": OmegaConf.create([1, 2]),
    "numpy._core.multiarray.scalar": np.float64(0.5),
    "print": Evil(),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_with_foreign_objects_is_refused_by_class_and_converted(tmp_path: Path, capsys, name: str, new: bool):
    file, out = tmp_path / "a.pt", tmp_path / "a.safetensors"
    content = {"state_dict": NET.half().state_dict(), "args": FOREIGN[name], "optimizer": {"state": {0: torch.ones(9)}}}
    torch.save(content, file, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=rf"holds {name}; python -m src.runtime.convert {file} {out}"):
        read_weights(file)
    assert convert(str(file), str(out)) == out
    assert "unpickled" not in capsys.readouterr().out
    made = load_file(out)
    assert made.keys() == NET.state_dict().keys()
    assert all(torch.equal(made[key], value) for key, value in NET.state_dict().items())
    NET.float()
    fill_all(nn.Linear(2, 3), state_dict(out), out)


def test_what_cannot_be_converted_is_told(tmp_path: Path):
    torch.save({"a": 1, "b": "c"}, tmp_path / "none.pt")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/constants.pkl", b"")
    (tmp_path / "bad.pt").write_bytes(b"\x80\x02bad")
    for name, out, told in (
        ("none.pt", "a.safetensors", "no tensors by name; its entries: a, b"),
        ("program.pt", "a.safetensors", "is a TorchScript program"),
        ("bad.pt", "a.safetensors", "is damaged, or no file of weights"),
        ("nowhere.pt", "a.safetensors", "There is no file"),
        ("none.pt", "a.pt", "ends in .safetensors"),
    ):
        with pytest.raises(ValueError, match=told):
            convert(str(tmp_path / name), str(tmp_path / out))
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_command_of_the_message_runs(tmp_path: Path):
    torch.save({"model": {"a": torch.ones(2)}, "x": Evil()}, tmp_path / "a.pt")
    command = [sys.executable, "-m", "src.runtime.convert", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, f"wrote {tmp_path / 'a.safetensors'}\n"), run.stderr
    assert list(load_file(tmp_path / "a.safetensors")) == ["a"]


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
def test_prefixes_are_stripped_and_tensors_counted(tmp_path: Path, caplog, prefix: str):
    save_file({f"{prefix}{key}": value for key, value in NET.state_dict().items()}, tmp_path / "a.safetensors")
    net = nn.Linear(2, 3)
    with caplog.at_level(logging.INFO, "src.runtime.weights"):
        fill_all(net, state_dict(tmp_path / "a.safetensors"), tmp_path / "a.safetensors")
    assert torch.equal(net.weight, NET.weight)
    assert "a.safetensors: 2 tensors loaded, none missing" in caplog.text


def test_weights_without_a_common_name_are_refused(tmp_path: Path):
    save_file({"a": torch.ones(1), "module.b": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"it lacks bias, weight; has the unknown a, module.b; 0 of 2 tensors match"):
        fill_all(NET, state_dict(tmp_path / "a.safetensors"), tmp_path / "a.safetensors")
    fill_all(NET, {**NET.state_dict(), "old": torch.ones(1)}, tmp_path / "a.safetensors", unused=("old",))


def test_a_file_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "b.pt"
    file.touch()
    assert found(file, ("a.pt",)) == found(str(tmp_path), ("a.pt", "b.pt")) == file
    asked = []

    def download(name: str, wanted: str) -> str:
        asked.append((name, wanted))
        if wanted == "a.pt":
            raise EntryNotFoundError("404")
        if wanted == "c.pt":
            raise OSError("no network\nat all")
        return str(file)

    monkeypatch.setattr(weights, "hf_hub_download", download)
    assert found("owner/name.v1", ("a.pt", "b.pt")) == file
    assert asked == [("owner/name.v1", "a.pt"), ("owner/name.v1", "b.pt")]
    with pytest.raises(ValueError, match=r"owner/name: there is no such .* not give a.pt or c.pt: no network at all"):
        found("owner/name", ("a.pt", "c.pt"))
    with pytest.raises(ValueError, match=r"has none of the files a.pt, c.pt"):
        found(tmp_path, ("a.pt", "c.pt"))
    for nowhere in ("nowhere", "folder/nowhere.pt", "/a/b/c"):
        with pytest.raises(ValueError, match=f"There is no file or folder {nowhere}"):
            found(nowhere, ("a.pt",))
