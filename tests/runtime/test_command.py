"""The decorator of the commands, on small commands of a folder of configurations made here."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from src.data.module import AdData
from src.data.rf1m import write_example
from src.runtime.command import command, example_command, exit_code, one_line

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "conf/size").mkdir(parents=True)
    (tmp_path / "conf/size/small.yaml").write_text("# A small size.\nrows: 2\n")
    entry = "# Makes things.\ndefaults: {size: small}\nseed: 0\nout: null\nthreads: null\ndebug: false\n"
    (tmp_path / "conf/make.yaml").write_text(entry)
    return tmp_path / "conf"


def run(conf: Path, monkeypatch: pytest.MonkeyPatch, main, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["make", *words])
    return command("make")(main)(conf)


def program(folder: Path, body: str, *words: str, **options) -> subprocess.Popen:
    """A command of its own process, whose main has this body."""
    code = f"""
        import os, sys, time
        from pathlib import Path
        from src.runtime.command import command

        @command("make")
        def main(config):
            {body}

        sys.exit(main(Path({str(folder)!r})))
        """
    words = (sys.executable, "-c", textwrap.dedent(code), *words)
    options = {"env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(words, **options)


def test_a_key_that_is_needed_is_not_null(conf, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make", "out=null"])
    assert command("make", "seed", "out")(lambda config: 0)(conf) == 2
    assert capsys.readouterr().err == "make: out=null: a value is needed.\n"


def test_main_gets_the_configuration_and_gives_the_exit_code(conf, monkeypatch):
    assert run(conf, monkeypatch, lambda config: config.size.rows, "size.rows=1", "seed=4") == 1
    assert run(conf, monkeypatch, lambda config: None) == 0


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_printed_and_nothing_is_run(flag, conf, monkeypatch, capsys):
    assert run(conf, monkeypatch, lambda config: 1 / 0, flag, "seed=9") == 0
    said = capsys.readouterr().out
    assert "Makes things." in said
    assert "  seed=9" in said


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sede=1", "sede=1: no key 'sede'; nearest: seed"), ("size=huge", "no such choice"), ("small", "is not key"),
        ("threads=-1", "threads=-1 must be at least 1"), ("seed=null", "seed=null: a number is needed"),
        ("--help=1", "no key"),
    ],
)  # fmt: skip
def test_a_word_that_is_wrong_is_one_line_and_code_2(word, message, conf, monkeypatch, capsys):
    assert run(conf, monkeypatch, lambda config: 0, word) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert (out, error.startswith("make: "), error.count("\n")) == ("", True, 1)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("row 3:\n no title"), "row 3: no title"),
        (ValueError("the key \x1b[2Jä\udcff"), r"the key \x1b[2Jä\udcff"),
        (OSError(28, "No space left on device", "a.csv"), "[Errno 28] No space left on device: 'a.csv'"),
        (MisconfigurationException("no GPU"), "no GPU"),
        (RuntimeError("shapes\ndiffer"), "RuntimeError: shapes (debug=true shows where)"),
        (TypeError("no"), "TypeError: no (debug=true shows where)"),
        (KeyboardInterrupt(), "interrupted."),
    ],
)
def test_an_error_is_one_line_unless_it_is_debugged(error, line, conf, monkeypatch, capsys):
    def main(config):
        raise error

    assert run(conf, monkeypatch, main) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert capsys.readouterr().err == f"make: {line}\n"
    assert run(conf, monkeypatch, main, f"out={conf.parent / 'new'}") != 0
    assert not (conf.parent / "new").exists()  # nothing was written
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            run(conf, monkeypatch, main, "debug=true")


class Torn:
    """A data set whose rows cannot be read."""

    classes = ()
    fields = frozenset({"key"})

    def split(self, name: str) -> "Torn":
        return self

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        raise ValueError("label.txt, line 7: image 3.jpg: truncated")


def test_an_error_of_a_loaders_process_is_its_message():
    with pytest.raises(ValueError, match="Traceback") as error:
        next(iter(AdData(Torn(), batch_size=4, num_workers=1).batches("test")))  # type: ignore[arg-type]
    assert one_line(error.value) == "label.txt, line 7: image 3.jpg: truncated"


def test_only_one_process_at_a_time_writes_to_an_output(conf, tmp_path):
    for out in (tmp_path / "runs/first", tmp_path / "scores.csv"):
        first = program(conf, "print('begun', flush=True); time.sleep(60)", f"out={out}")
        assert first.stdout
        assert first.stdout.readline() == "begun\n"
        _, error = program(conf, "print('begun')", f"out={out}").communicate(timeout=60)
        assert error == f"make: {out} is in use by another process; wait until it ends, or choose another out.\n"
        first.send_signal(signal.SIGKILL)
        first.communicate()
        said, error = program(conf, "print('begun')", f"out={out}").communicate(timeout=60)
        assert (said, error) == ("begun\n", "")
        assert not list(tmp_path.rglob("*.lock"))


def test_the_workers_of_a_killed_process_do_not_hold_its_lock(conf, tmp_path):
    body = "os.fork() and (print('begun', flush=True), os.kill(os.getpid(), 9)); time.sleep(30)"
    killed = program(conf, body, f"out={tmp_path / 'run'}", stderr=subprocess.DEVNULL)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    said, _ = program(conf, "print('begun')", f"out={tmp_path / 'run'}").communicate(timeout=25)
    assert said == "begun\n"


def test_the_processes_of_one_training_run_share_its_output(conf, tmp_path):
    (conf / "make.yaml").write_text((conf / "make.yaml").read_text() + "trainer: {}\n")
    first = program(conf, "print('begun', flush=True); time.sleep(60)", f"out={tmp_path / 'run'}")
    assert first.stdout
    first.stdout.readline()
    second = program(conf, "print('begun')", f"out={tmp_path / 'run'}", env=ENVIRONMENT | {"LOCAL_RANK": "1"})
    assert second.communicate(timeout=60)[0] == "begun\n"
    first.kill()
    first.communicate()


def test_a_closed_pipe_or_an_ascii_terminal_is_no_traceback(conf):
    closed = program(conf, "time.sleep(0.5); print('x' * 100_000)", stdout=(pipe := os.pipe())[1])
    os.close(pipe[0])
    os.close(pipe[1])
    assert closed.communicate(timeout=60)[1] == ""
    assert closed.returncode == 128 + signal.SIGPIPE
    ascii_only = ENVIRONMENT | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert program(conf, "print('\\u00e4')", env=ascii_only).communicate(timeout=60) == ("\\xe4\n", "")


def test_sigterm_in_a_loop_of_lightning_is_one_line_and_143(capsys):
    stop = SIGTERMException()

    def work() -> None:
        raise stop

    assert exit_code("evaluate", work) == 128 + signal.SIGTERM
    stop.add_note("no state was saved yet")
    assert exit_code("fit", work) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == (
        "evaluate: stopped by SIGTERM.\nfit: stopped by SIGTERM; no state was saved yet.\n"
    )


def test_an_example_is_written_into_an_empty_folder_only(tmp_path, monkeypatch, capsys):
    def example(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["rf1m", *words])
        return example_command("src.data.rf1m", write_example)

    assert example(str(tmp_path / "set"), "--count", "6", "--size", "16") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'set'}\n"
    before = (tmp_path / "set/label.txt").read_bytes()
    assert np.count_nonzero(np.frombuffer(before, np.uint8) == ord("\n")) == 6
    assert example(str(tmp_path / "set"), "--count", "7") == 2
    assert f"{tmp_path / 'set'} is not empty" in capsys.readouterr().err
    assert (tmp_path / "set/label.txt").read_bytes() == before
    assert example(str(tmp_path / "set/label.txt/x")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_and_typos_are_answered_before_torch_is_imported():
    for words, code, told in ((["--help"], 0, "usage: python -m src.fit"), (["model=rfent"], 2, "nearest: rfnet")):
        command = [sys.executable, "-X", "importtime", "-m", "src.fit", *words]
        ended = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == code
        assert told in ended.stdout + ended.stderr
        assert "omegaconf" in ended.stderr
        assert "| torch\n" not in ended.stderr
    command = f"'{sys.executable}' -m src.fit --help | true"
    ended = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert ended.stderr == ""
