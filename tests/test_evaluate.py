import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from src.data.rf1m import write_example
from src.evaluate import main
from tests.rewards import tiny

SMALL = [
    "data.source.num={train: 6, val: 7, test: 10}",
    "data.source.size=32",
    "data.source.cache=null",
    "data.num_workers=0",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "threads=1",
]


def command(monkeypatch: pytest.MonkeyPatch, *words: str, small: Sequence[str] = SMALL) -> int:
    """The exit code of `python -m src.evaluate` with these words, run in this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *small, *words])
    try:
        return main()
    except SystemExit as exit:
        return int(exit.code or 0)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.rfnet(tmp_path_factory.mktemp("nets"))


@pytest.mark.parametrize(("split", "records"), [("test", 10), ("val", 7), ("train", 6)])
def test_metrics_of_any_split_are_printed_and_written_alike(
    tmp_path: Path,
    nets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    split: str,
    records: int,
) -> None:
    words = [f"checkpoint={nets['checkpoint']}", f"split={split}"]
    assert command(monkeypatch, *words, f"out={tmp_path / 'a'}") == 0
    said = capsys.readouterr().out
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    assert f"on the {split} split, {records} records" in said
    assert {f"{split}/loss", f"{split}/macro_f1", f"{split}/availability_f1"} <= set(metrics)
    assert all(name.startswith(f"{split}/") for name in metrics)
    shown = dict(line.split() for line in said.splitlines()[1:])
    assert shown == {name: f"{float('nan') if value is None else value:.4f}" for name, value in metrics.items()}
    assert command(monkeypatch, *words, f"out={tmp_path / 'b'}", "data.batch_size=3") == 0
    again = json.loads((tmp_path / "b/metrics.json").read_text())
    assert again == pytest.approx(metrics, abs=1e-5), "the mean is over records, not batches"


def test_several_checkpoints_are_compared_on_the_same_records(
    tmp_path: Path, nets: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [nets["checkpoint"], nets["depth"]]
    assert command(monkeypatch, f"checkpoint={both[0]}", f"compare=[{both[1]}]", f"out={tmp_path / 'both'}") == 0
    head, *rows = capsys.readouterr().out.splitlines()[1:]
    assert head.split() == ["metric", *both]
    told = json.loads((tmp_path / "both/metrics.json").read_text())
    for folder in both:
        out = tmp_path / Path(folder).name
        assert command(monkeypatch, f"checkpoint={folder}", f"out={out}") == 0
        assert json.loads((out / "metrics.json").read_text()) == told[folder]
    shown = {name: values for name, *values in map(str.split, rows)}
    assert shown["test/macro_f1"] == [f"{told[both[0]]['test/macro_f1']:.4f}", "-"]
    assert shown["test/spearman"] == ["-", f"{told[both[1]]['test/spearman']:.4f}"]


def test_a_baseline_without_training_is_measured_beside_checkpoints(tmp_path, monkeypatch, capsys):
    node = tiny.on_clip(tmp_path / "config", "rahf.clip.ClipFeedback")
    tuned = tiny.checkpoint(tmp_path / "tuned", node)
    words = ["baseline=clip", f"baseline.backbone.name={node['backbone']['name']}"]
    words += ["baseline.backbone.weights=null", "data.shares.perceived=0"]
    assert command(monkeypatch, *words, f"compare=[{tuned}]", f"out={tmp_path / 'both'}") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    told = json.loads((tmp_path / "both/metrics.json").read_text())
    assert list(told) == [tuned, "clip"]
    for name, metrics in told.items():
        assert ["alignment", name, *(f"{metrics[f'test/alignment_{key}']:.4f}" for key in ("plcc", "srcc"))] in rows
    assert "test/misalignment_cc" in told["clip"]
    assert command(monkeypatch, *words, f"out={tmp_path / 'one'}") == 0
    assert json.loads((tmp_path / "one/metrics.json").read_text()) == pytest.approx(told["clip"])


def test_metrics_that_are_there_are_not_replaced(tmp_path, nets, monkeypatch, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    assert command(monkeypatch, f"checkpoint={nets['depth']}", f"out={tmp_path}") == 2
    assert f"{tmp_path / 'metrics.json'} exists; choose another out" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").read_text() == "{}"


def test_a_perception_net_is_measured_too_and_without_out_nothing_is_written(
    tmp_path: Path, nets: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, f"checkpoint={nets['depth']}") == 0
    assert "test/spearman" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=none"], "There is no checkpoint folder none"),
        (["checkpoint={net}", "split=exam"], "exam"),
        (
            [
                "checkpoint={net}",
                "data.source.holds=[image,product,label]",
                "data.transforms.perceived=null",
                "data.shares.perceived=0",
            ],
            "depth, saliency, title",
        ),
        (
            ["checkpoint={depth}", "data.source.holds=[image,label]"],
            "depth made by a transform cannot be used as a target",
        ),
        (["checkpoint={net}", "data=rf1m", "data.root={rf1m}", "data.unsuitable=class"], "the data has the classes"),
        (["checkpoint={net}", "trainer.devices=0"], "devices"),
        (["checkpoint={net}", "data.source.num.test=0"], "the test split has no records"),
        ([], "needs checkpoint=... or baseline=..."),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(
    tmp_path: Path,
    nets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    rf1m = write_example(tmp_path / "rf1m", count=12, size=32)
    words = [word.format(net=nets["checkpoint"], depth=nets["depth"], rf1m=rf1m) for word in words]
    assert command(monkeypatch, *words, small=[] if "data=rf1m" in words else SMALL) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_perceived_measures_with_the_maps_of_the_nets(
    tmp_path: Path, nets: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = f"data.transforms.perceived={{depth: {nets['depth']}, saliency: {nets['saliency']}}}"
    words = [f"checkpoint={nets['checkpoint']}", maps]
    losses = []
    for number, more in enumerate(([], ["perceived=true"], ["data.source.holds=[key,title,image,product,label]"])):
        out = tmp_path / f"out{number}"
        assert command(monkeypatch, *words, *more, f"out={out}") == 0
        losses.append(json.loads((out / "metrics.json").read_text())["test/loss"])
    assert losses[1] == pytest.approx(losses[2])
    assert losses[0] != pytest.approx(losses[1])
    capsys.readouterr()
    assert (
        command(monkeypatch, *words, "perceived=true", "data.transforms.perceived=null", "data.shares.perceived=0") == 2
    )
    assert "there is no transform perceived; data.transforms has none" in capsys.readouterr().err
