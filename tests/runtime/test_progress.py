import pytest

from src.runtime import progress
from src.runtime.progress import progress_bar, table


def test_metrics_before_and_after_stand_in_one_line():
    lines = table({"test/reward": -0.25, "test/before_reward": -1.5, "val/reward": -0.5}).splitlines()
    assert [line.split() for line in lines] == [
        ["test/reward", "-0.2500", "before", "-1.5000"],
        ["val/reward", "-0.5000"],
    ]


def test_where_no_terminal_is_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(3) as bar:
        bar.update(3)
    assert capsys.readouterr().err == "", "it was over at once"
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress_bar(30, done=10, desc="val") as bar:
        for _ in range(20):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 20
    assert "val:  50%" in lines[5]
    assert "15/30" in lines[5]
