"""Speed and memory on a GPU: `python -m benchmarks.gpu [KEY=VALUE ...]`.

Sections, each in its own process and in at most `time` seconds:

    tests      the tests marked `gpu`
    matmul     TFLOP/s of matrix products: the peak that rollouts are compared with
    rollout    images/s of the generators, and their share of that peak
    tuning     seconds per gradient sample and peak memory of RFFT on ControlNet and LoRA
    compile    rollouts with and without `torch.compile`
    score      images/s of `src.score`
    generate   images/s of `src.generate`
    rahf       training steps of RAHF with ViT-B/16 and T5-base

Generators: the shipped one, and Stable Diffusion 1.5 with ControlNet, full size, 512 px, random weights. A section is
written to `OUT/gpu-CARD.json` as soon as it ends, with what its numbers depend on; one that is there for the same
device, precision and size is skipped, unless again=true. An error in one case or section is recorded, and the others go
on; such a section is measured again by the same command.
Options: sections=tests,matmul,... device=cuda precision=bfloat16 size=full time=480 again=false apart=true out=null.
device=cpu size=tiny runs all code in seconds, for tests; its numbers mean nothing. apart=false: all sections in this
process, for a profiler or debugger, without a limit of time. out=null: benchmarks/results; or runs/gpu, of other runs
than device=cuda size=full.
Exit code 0: every section has its result; 1: there were errors; 2: wrong options, or there is no such device.
"""

import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.commands import generated, rahf, scored, tested
from benchmarks.gpu.diffusion import Cases, compiled, matmul, rollout, tuning
from benchmarks.gpu.setup import Setup
from src.runtime.device import PRECISIONS, machine, torch_device
from src.runtime.files import write_json

SECTIONS: dict[str, Callable[[Setup], Cases]] = {
    "tests": tested, "matmul": matmul, "rollout": rollout, "tuning": tuning, "compile": compiled, "score": scored,
    "generate": generated, "rahf": rahf,
}  # fmt: skip
WORDS = {
    "sections": ",".join(SECTIONS), "device": "cuda", "precision": "bfloat16", "size": "full", "time": "480",
    "again": "false", "apart": "true", "out": "null",
}  # fmt: skip
CHOICES = {"size": ("full", "tiny"), "again": ("false", "true"), "apart": ("false", "true"), "precision": PRECISIONS}
DEPENDS = ("device", "precision", "size")  # options that the numbers depend on
RESULTS = Path(__file__).parents[1] / "results"
ALONE = "import sys; from benchmarks.gpu.__main__ import alone; alone(*sys.argv[1:])"  # in a separate process


def measure(section: str, words: dict[str, str], lines: Path) -> None:
    """Measures all cases of a section and appends the result of each to the file, as a line of JSON."""
    device = torch_device(words["device"])
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")  # as the commands do

    def told(case: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # of whatever kind: the other cases go on
            traceback.print_exc()
            reason = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
            append(lines, {"case": case, "found": {"error": f"{type(error).__name__}: {reason}"}})

    setup = Setup(device, words["precision"], words["size"] == "tiny")
    cases = told("", lambda: SECTIONS[section](setup)) or {}
    for case, action in cases.items():
        found = told(case, action)
        if found is not None:
            append(lines, {"case": case, "found": found})
            print(f"{section}: {case}: {shown(found)}", flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def shown(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
    )


def alone(section: str, words: str, lines: str) -> None:
    """`measure` in its own process; `words`: options as JSON."""
    measure(section, json.loads(words), Path(lines))


def apart(section: str, words: dict[str, str], lines: Path) -> str:
    """`measure` in a new process; the reason if it is stopped, or ends by itself before the last case."""
    command, limit = [sys.executable, "-c", ALONE, section, json.dumps(words), str(lines)], float(words["time"])
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
        return f"the process ended with code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def result(section: str, words: dict[str, str]) -> dict[str, Any]:
    """The numbers of a section by case, what they depend on, and `error` if there was one in any case."""
    start, error = time.monotonic(), ""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.jsonl"
        lines.touch()
        if words["apart"] == "true":
            error = apart(section, words, lines)
        else:
            measure(section, words, lines)
        found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    cases = {line["case"]: line["found"] for line in found}
    whole = cases.pop("", {}).get("error", "")
    failed = [f"{case}: {numbers['error']}" for case, numbers in cases.items() if "error" in numbers]
    errors = [reason for reason in (error, whole, *failed) if reason]
    return {**about(words), "seconds": time.monotonic() - start, "cases": cases} | (
        {"error": "; ".join(errors)} if errors else {}
    )


def about(words: dict[str, str]) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    device = torch_device(words["device"])
    gpu = device.type == "cuda"
    return {
        "machine": machine(device),
        "memory GiB": round(torch.cuda.get_device_properties(device).total_memory / 2**30) if gpu else None,
        "cpu cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        **{name: words[name] for name in DEPENDS},
        "float32 products": "TF32" if gpu else "float32",
    }


def options(words: list[str]) -> dict[str, str]:
    """The options of the command line. Raises ValueError for one that there is not, or a wrong value."""
    if odd := [word for word in words if "=" not in word]:
        raise ValueError(f"{odd[0]!r} is not KEY=VALUE; options: {', '.join(WORDS)}.")
    found = WORDS | dict(word.split("=", 1) for word in words)
    if foreign := sorted(found.keys() - WORDS.keys()):
        raise ValueError(f"no option {', '.join(foreign)}; options: {', '.join(WORDS)}.")
    for name, choices in CHOICES.items():
        if found[name] not in choices:
            raise ValueError(f"{name}={found[name]}: choose one of {', '.join(choices)}.")
    if foreign := [name for name in found["sections"].split(",") if name not in SECTIONS]:
        raise ValueError(f"sections={', '.join(foreign)}: choose from {', '.join(SECTIONS)}.")
    if not re.fullmatch(r"\d+(\.\d+)?", found["time"]) or not float(found["time"]):
        raise ValueError(f"time={found['time']}: seconds above 0 are needed.")
    torch_device(found["device"])
    return found


def results_file(words: dict[str, str]) -> Path:
    """The file of the card, such as gpu-nvidia-h100-80gb-hbm3.json."""
    device = torch_device(words["device"])
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    measures = device.type == "cuda" and words["size"] == "full"
    folder = (RESULTS if measures else Path("runs/gpu")) if words["out"] == "null" else Path(words["out"])
    return folder / f"gpu-{re.sub('[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def main(own: list[str]) -> int:
    if {"-h", "--help"} & {*own}:
        print(__doc__)
        return 0
    try:
        words = options(own)
    except ValueError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    file, failed = results_file(words), []
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for section in words["sections"].split(","):
        there = known.get(section)
        same = there and "error" not in there and all(there[name] == words[name] for name in DEPENDS)
        if there and same and words["again"] == "false":
            print(f"{section}: measured on {there['date']}", flush=True)
            continue
        known[section] = result(section, words)
        write_json(file, known)
        if "error" in known[section]:
            failed.append(section)
            print(f"{section}: {known[section]['error']}", file=sys.stderr, flush=True)
    print(f"results in {file}" + (f"; errors in {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
