"""One training step of RAHF at the size of the paper: `python -m benchmarks.rahf [KEY=VALUE ...]`.

ViT-B/16 at 224 px and a T5 of the size of t5-base with random weights, AdamW, both variants, each measured in its own
process. Prints a table and writes `benchmarks/results/rahf_size.json`, one entry for each device.
Options: batch=2 steps=2 threads=2 device=cpu precision=32-true.
"""

import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch

from src.build import build
from src.models.rahf.net import VARIANTS
from src.runtime.device import machine

WORDS = {"batch": "2", "steps": "2", "threads": "2", "device": "cpu", "precision": "32-true"}
RESULTS = Path(__file__).parent / "results" / "rahf_size.json"
SIDE = 224
PROMPT = (
    "product photo of a cube shelf in a modern room, charcoal tiled wall, oak floor, soft light, next to a palm plant"
)
WORDS_IN_PROMPT = 22
MODEL: dict[str, Any] = {
    "_target_": "src.models.rahf.system.RAHFSystem",
    "image_encoder": {
        "_target_": "src.models.layers.ImageEncoderSettings",
        "name": "vit_base_patch16_224",
        "size": SIDE,
    },
    "prompt_model": {
        "_target_": "src.models.rahf.net.PromptModelSettings",
        "name": "src/data/showroom/t5",
        "options": {
            "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12,
            "num_heads": 12,
        },
    },
    "heads": {"_target_": "src.models.rahf.net.HeadSettings"},
}  # fmt: skip


def measure(variant: str, options: dict[str, str], model: dict[str, Any] = MODEL, side: int = SIDE) -> dict[str, float]:
    """Seconds per step (the fastest), millions of parameters, and the peak of memory in GiB, on images of `side` px."""
    torch.set_num_threads(int(options["threads"]))
    torch.manual_seed(0)
    device, batch = torch.device(options["device"]), int(options["batch"])
    system = build({**model, "variant": variant}).to(device).train()
    optimizer = torch.optim.AdamW(system.parameters(), lr=system.lr)
    data = {
        "key": [str(row) for row in range(batch)],
        "prompt": [PROMPT] * batch,
        "image": torch.rand(batch, 3, side, side, device=device),
        "heatmaps": torch.rand(batch, 2, side, side, device=device),
        "scores": torch.rand(batch, 4, device=device),
        "aligned_words": torch.ones(batch, WORDS_IN_PROMPT, dtype=torch.long, device=device),
    }
    bf16 = options["precision"] == "bf16-mixed"
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(int(options["steps"]) + 1):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            loss = torch.stack(list(system.losses(data).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * _peak_kib()
    weights = sum(weight.numel() for weight in system.net.parameters())
    return {"seconds": min(seconds[1:]), "parameters, M": weights / 1e6, "peak, GiB": peak / 2**30}


def _peak_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def main(words: list[str]) -> None:
    options = WORDS | dict(word.split("=", 1) for word in words)
    if unknown := sorted(options.keys() - {*WORDS, "variant"}):
        raise SystemExit(f"unknown option {unknown[0]}; there are {', '.join(WORDS)}.")
    if "variant" in options:  # the process of one variant
        print(json.dumps(measure(options.pop("variant"), options)))
        return
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.rahf", f"variant={variant}"]
        command += [f"{name}={value}" for name, value in options.items()]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[variant] = json.loads(output.strip().splitlines()[-1])
        print(variant, "  ".join(f"{name} {value:.2f}" for name, value in found[variant].items()))
    name = machine(torch.device(options["device"]))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[f"{name}, {options['precision']}"] = options | {
        "date": date.today().isoformat(), "machine": name, "torch": torch.__version__, "variants": found,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
