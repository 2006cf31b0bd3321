"""The benchmark of GPUs on a CPU: all sections at tiny sizes, and what becomes of errors and time limits."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.measures import matmul_rate, tera_operations
from benchmarks.gpu.setup import Setup, sampler
from benchmarks.tuning import random_sd15

TINY = ["device=cpu", "size=tiny", "apart=false"]
CPU = torch.device("cpu")


def test_all_sections_at_tiny_sizes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "precision=float32", f"out={tmp_path}"]  # CPUs may be slow in bfloat16
    assert gpu.main(words) == 0, capfd.readouterr().err
    found = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert list(found) == list(gpu.SECTIONS)
    for section in found.values():
        assert section["cases"]
        assert (section["size"], section["precision"], section["torch"]) == ("tiny", "float32", torch.__version__)
    rollout = found["rollout"]["cases"]["sd15, batch 1"]
    assert rollout["share of matmul"] == pytest.approx(rollout["TFLOP/s"] / rollout["bfloat16 matmul TFLOP/s"])
    assert rollout["TFLOP/s"] == pytest.approx(rollout["TFLOP per image"] / rollout["seconds"])
    assert found["compile"]["cases"]["sd15, batch 1, compiled"]["graph breaks"] == 0
    trained = {name: case["trained weights"] for name, case in found["tuning"]["cases"].items()}
    assert (
        trained["sd15, batch 1, controlnet, cc, checkpointing"]
        > trained["sd15, batch 1, unet_lora, none, checkpointing"]
    )
    assert found["tests"]["cases"]["marked gpu"]["failed"] == 0
    bf16 = gpu.compiled(Setup(CPU, "bfloat16", tiny=True))["sd15, batch 1, eager"]()
    assert float(bf16["images/s"]) > 0

    capfd.readouterr()
    assert gpu.main(words) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[:-1] == [f"{name}: measured on {section['date']}" for name, section in found.items()]


def test_an_error_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def broken() -> dict:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    def unbuilt(setup: Setup) -> dict:
        raise ValueError("no weights")

    monkeypatch.setitem(gpu.SECTIONS, "rollout", lambda setup: {"large": broken, "small": lambda: {"images/s": 2.0}})
    monkeypatch.setitem(gpu.SECTIONS, "score", unbuilt)
    words = [*TINY, f"out={tmp_path}", "sections=rollout,score,matmul"]
    assert gpu.main(words) == 1
    file = tmp_path / "gpu-cpu.json"
    found = json.loads(file.read_text())
    assert found["rollout"]["error"] == "large: OutOfMemoryError: out of memory"
    assert found["rollout"]["cases"]["small"] == {"images/s": 2.0}
    assert found["score"]["error"] == "ValueError: no weights"
    assert "error" not in found["matmul"]

    monkeypatch.setitem(gpu.SECTIONS, "rollout", lambda setup: {"large": lambda: {"images/s": 1.0}})
    monkeypatch.setitem(gpu.SECTIONS, "score", lambda setup: {"one": lambda: {"images/s": 3.0}})
    capfd.readouterr()
    assert gpu.main(words) == 0
    assert "matmul: measured on" in capfd.readouterr().out
    assert json.loads(file.read_text())["rollout"]["cases"] == {"large": {"images/s": 1.0}}
    assert gpu.main([*words[:-1], "sections=score", "again=true", "precision=float32"]) == 0
    assert json.loads(file.read_text())["score"]["precision"] == "float32"


def test_a_section_of_its_own_process_is_stopped_in_time_and_keeps_its_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is a plain one, because to import torch takes longer than the limit."""
    line = json.dumps({"case": "first", "found": {"images/s": 2.0}})
    code = "import sys, time; open(sys.argv[3], 'w').write({!r} + chr(10)); {}"
    for ending, error in (("time.sleep(60)", "stopped after 2 s"), ("sys.exit(3)", "the process ended with code 3")):
        monkeypatch.setattr(gpu, "ALONE", code.format(line, ending))
        start = time.monotonic()
        found = gpu.result("matmul", gpu.WORDS | {"device": "cpu", "size": "tiny", "time": "2"})
        assert time.monotonic() - start < 30
        assert found["error"] == error
        assert found["cases"] == {"first": {"images/s": 2.0}}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("sections=rollouts", "sections=rollouts: choose from tests, matmul"),
        ("size=small", "size=small: choose one of full, tiny"),
        ("card=h100", "no option card; options: sections"),
        ("again", "'again' is not KEY=VALUE"),
        ("time=0", "time=0: seconds above 0"),
        ("device=gpu", "device=gpu: "),
    ],
)
def test_wrong_options_are_told(word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["device=cpu", word]) == 2
    assert told in capsys.readouterr().err


def test_results_of_a_trial_do_not_get_among_the_measured_ones() -> None:
    words = gpu.WORDS | {"device": "cpu"}
    assert gpu.results_file(words) == Path("runs/gpu/gpu-cpu.json")
    assert gpu.results_file(words | {"out": "elsewhere"}) == Path("elsewhere/gpu-cpu.json")


def test_operations_are_counted_by_hand() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert tera_operations(lambda: a @ b) == pytest.approx(2 * 3 * 5 * 7 / 1e12)
    q = torch.ones(1, 2, 6, 4)  # two heads, six tokens of width 4: two products, with the keys and with the values
    attention = torch.nn.functional.scaled_dot_product_attention
    assert tera_operations(lambda: attention(q, q, q)) == pytest.approx(2 * 2 * (2 * 6 * 6 * 4) / 1e12)
    assert matmul_rate(8, torch.float32, CPU, repeats=1, times=2) > 0


def test_the_full_size_is_that_of_stable_diffusion_1_5() -> None:
    with torch.device("meta"):
        net = random_sd15(512)
    numbers = {name: sum(w.numel() for w in getattr(net, name).parameters()) for name in ("unet", "controlnet", "vae")}
    assert numbers == {"unet": 859_520_964, "controlnet": 361_279_120, "vae": 83_653_863}


def test_a_gpu_that_was_not_measured_has_dashes_and_one_with_errors_has_its_other_numbers(tmp_path: Path) -> None:
    empty = report.gpu(tmp_path)
    assert f"{empty['card']} | {empty['rollout']['sd15, batch 8']['images/s']:.2f}" == "- | -"
    section = {"machine": "1 x H100", "date": "2026-12-01", "cases": {"sd15, batch 8": {"images/s": 1.234}}}
    (tmp_path / "gpu-h100.json").write_text(json.dumps({"rollout": section}))
    found = report.gpu(tmp_path)
    assert f"{found['rollout']['sd15, batch 8']['images/s']:.2f}" == "1.23"
    assert f"{found['rollout']['sd15, batch 16']['images/s']:.2f} {found['score']['x']['y']:.0%}" == "- -"
    assert (found["card"], found["date"]) == ("1 x H100", "2026-12-01")


def test_the_sampler_is_made_once_in_the_precision() -> None:
    setup = Setup(CPU, tiny=True)
    assert sampler(setup, "sd15") is sampler(setup, "sd15")
    assert {weight.dtype for weight in sampler(setup, "sd15").parameters()} == {torch.bfloat16}
