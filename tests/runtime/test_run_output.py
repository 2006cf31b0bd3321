import csv
from pathlib import Path

import pytest

from src.runtime.run_output import FailedRow, RunOutput

OF = {"table": "abc", "batch_size": 2}
CHUNKS = [
    ([], [FailedRow(1, "a", "a.png", "no such file"), FailedRow(2, "b", "", "no title")]),
    ([{"key": "c", "value": -0.5}, {"key": "d, e\n", "value": -1.25}], []),
    ([{"key": "f", "value": 3.0}], [FailedRow(5, "e", "e.png", "torn")]),
    ([{"key": "g\u2033", "value": 0.0}], []),
]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def unbroken(out: Path) -> None:
    output = RunOutput(out, OF, resume=True)
    for chunk in CHUNKS:
        output.add(*chunk)
    output.close()


@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl"])
@pytest.mark.parametrize("torn", range(len(CHUNKS)))
@pytest.mark.parametrize("written", ["some of out", "out", "some of failed", "both"])
def test_a_kill_between_any_two_writes_leaves_no_trace(tmp_path: Path, name: str, torn: int, written: str) -> None:
    unbroken(tmp_path / "whole" / name)
    out = tmp_path / "killed" / name
    output = RunOutput(out, OF, resume=True)
    for chunk in CHUNKS[:torn]:
        output.add(*chunk)
    state = output.record.read_bytes()
    lengths = {file: file.stat().st_size if file.exists() else 0 for file in (out, output.failed)}
    output.add(*CHUNKS[torn])
    output.record.write_bytes(state)  # the kill came before the progress was recorded, ...
    keep = {"some of out": (0.5, 0), "out": (1, 0), "some of failed": (1, 0.5), "both": (1, 1)}[written]
    for share, (file, before) in zip(keep, lengths.items(), strict=True):  # ... or earlier still
        if file.exists():
            data = file.read_bytes()
            file.write_bytes(data[: before + int(share * (len(data) - before))])
    output.record.with_name(f"{output.record.name}.part").write_text("{torn")

    output = RunOutput(out, OF, resume=True)
    assert output.progress.rows == sum(len(rows) + len(failed) for rows, failed in CHUNKS[:torn])
    for chunk in CHUNKS[torn:]:
        output.add(*chunk)
    output.close()
    assert files(out.parent) == files(tmp_path / "whole")


def test_rows_and_failed_rows_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unbroken(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert [(row["key"], float(row["value"])) for row in csv.DictReader(file)] == [
            ("c", -0.5),
            ("d, e\n", -1.25),
            ("f", 3.0),
            ("g\u2033", 0.0),
        ]
    again = RunOutput(tmp_path / "scores.csv", OF, resume=True)
    assert again.progress.complete
    assert again.report("scored") == 1
    said = capsys.readouterr().out
    assert "4 scored" in said
    assert "row 1 (a): a.png: no such file" in said
    assert "row 2 (b): no title" in said


def test_another_run_or_an_edited_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    unbroken(out)
    with pytest.raises(ValueError, match=r"a run that differs in table; choose another out, or resume=false"):
        RunOutput(out, {**OF, "table": "x"}, resume=True)
    out.write_bytes(out.read_bytes()[:5])
    with pytest.raises(ValueError, match="is shorter than"):
        RunOutput(out, OF, resume=True)
    assert RunOutput(out, {**OF, "table": "x"}, resume=False).progress.rows == 0
    assert files(tmp_path).keys() == {"scores.csv", "scores.csv.run.json"}
    assert out.read_bytes() == b""


def test_a_run_that_stopped_before_its_first_result_binds_nothing(tmp_path: Path) -> None:
    RunOutput(tmp_path / "scores.csv", OF, resume=True)
    RunOutput(tmp_path / "ads", OF, resume=True)
    for name in ("scores.csv", "ads"):
        assert RunOutput(tmp_path / name, {"table": "x"}, resume=True).progress.settings == {"table": "x"}


def test_results_of_a_folder_have_keys_and_those_that_are_gone_are_to_be_done_again(tmp_path: Path) -> None:
    output = RunOutput(tmp_path, OF, resume=True)
    output.add([{"key": "a", "value": 1.5}, {"key": "b\udcff", "value": 0.25}], [FailedRow(3, "c\udcff", "", "torn")])
    with output.table.open("a") as file:
        file.write('{"key": "d", "va')  # torn by a kill
    again = RunOutput(tmp_path, OF, resume=True)
    assert again.results(lambda row: row["key"] != "a") == {"b\udcff": {"key": "b\udcff", "value": 0.25}}
    assert again.progress.rows == 1
    assert not again.failed.exists()
    assert RunOutput(tmp_path, OF, resume=True).results(lambda row: True).keys() == {"b\udcff"}
    with pytest.raises(ValueError, match="has results; use resume=true"):
        RunOutput(tmp_path, OF, resume=False)
    again.table.write_text('{"key"\n')
    with pytest.raises(ValueError, match=r"manifest\.jsonl, line 1 is damaged"):
        RunOutput(tmp_path, OF, resume=True).results(lambda row: True)


def test_inputs_and_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png was not written by this command"):
        RunOutput(tmp_path, OF, resume=True, files=[tmp_path / "b.png", tmp_path / "a.png"])
    with pytest.raises(ValueError, match=r"would overwrite the input .*manifest\.jsonl"):
        RunOutput(tmp_path, OF, resume=True, inputs=[tmp_path / "x/../manifest.jsonl"])
    assert files(tmp_path).keys() == {"a.png"}


@pytest.mark.parametrize("resume", [True, False])
def test_a_table_without_a_record_is_not_replaced(tmp_path: Path, resume: bool) -> None:
    for out, file in ((tmp_path / "notes.csv", "notes.csv"), (tmp_path / "ads", "ads/failed.csv")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("mine")
        with pytest.raises(ValueError, match=rf"{file} was not written by this command; choose another out"):
            RunOutput(out, OF, resume=resume)
        assert (tmp_path / file).read_text() == "mine"


def test_files_of_a_run_of_other_settings_are_not_replaced(tmp_path: Path) -> None:
    output = RunOutput(tmp_path, OF, resume=True)
    (tmp_path / "a.png").touch()
    output.table.unlink()  # by the user
    with pytest.raises(ValueError, match=r"a\.png was not written by this command"):
        RunOutput(tmp_path, OF | {"table": "x"}, resume=True, files=[tmp_path / "a.png"])
    RunOutput(tmp_path, OF, resume=True, files=[tmp_path / "a.png"])


def test_scores_never_lie_without_their_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "scores.csv"
    monkeypatch.setattr(RunOutput, "_record", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))  # killed there
    with pytest.raises(KeyboardInterrupt):
        RunOutput(out, OF, resume=True)
    monkeypatch.undo()
    assert not out.exists()
    unbroken(out)


def test_a_record_that_is_none_is_told(tmp_path: Path) -> None:
    unbroken(tmp_path / "scores.csv")
    for text in ('{"of": {}, "colour": 1}', "{", "[1]"):
        (tmp_path / "scores.csv.run.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"scores\.csv\.run\.json is not a valid record of a run; choose another out"
        ):
            RunOutput(tmp_path / "scores.csv", OF, resume=True)


def test_keys_with_control_characters_stay_one_row_and_do_not_reach_the_screen(tmp_path: Path, capsys) -> None:
    keys = ["a\rb", "\x1b[31m", "c\r\nd"]
    output = RunOutput(tmp_path / "scores.csv", OF, resume=True)
    output.add([{"key": key, "value": 1.0} for key in keys], [FailedRow(4, "e\r\x1b[2J", "", "torn")])
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == keys
    assert output.report("scored") == 1
    said = capsys.readouterr().out
    assert "row 4 (e\\r\\x1b[2J): torn" in said
    assert "\x1b" not in said
