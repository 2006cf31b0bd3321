"""The sections matmul, rollout, compile and tuning: each gives its cases, which return numbers by name."""

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks.gpu.measures import copy_rate, matmul_rate, measured, seconds, synchronize, tera_operations
from benchmarks.gpu.setup import REWARD, Setup, ads, new_generator, sampler
from benchmarks.tuning import rfft
from src.diffusion.generator import Conditions, Generator
from src.models.rfft.regularizers import ConsistentCondition, NoRegularizer
from src.models.rfnet.reward import RFNetReward
from src.runtime.device import autocast

Numbers = dict[str, float | int | str]
Cases = dict[str, Callable[[], Numbers]]


def matmul(setup: Setup) -> Cases:
    """TFLOP/s of square products in bfloat16, TF32 and float32, and GB/s of a copy."""
    rate: Callable[..., float] = partial(matmul_rate, device=setup.device)

    def float32(side: int, precision: str) -> Numbers:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return {"TFLOP/s": rate(side, torch.float32)}
        finally:
            torch.set_float32_matmul_precision(before)

    def bf16(side: int) -> Numbers:
        return {"TFLOP/s": rate(side, torch.bfloat16)}

    def copy() -> Numbers:
        return {"GB/s": copy_rate(1 if setup.tiny else 4000, setup.device)}

    side = setup.sides[len(setup.sides) // 2]
    cases: Cases = {f"bfloat16 {side}": partial(bf16, side) for side in setup.sides}
    cases |= {f"{name} {side}": partial(float32, side, how) for name, how in (("TF32", "high"), ("float32", "highest"))}
    return cases | {"copy": copy}


def rollout(setup: Setup) -> Cases:
    """Images per second of rollouts with guidance, and their share of the peak of bfloat16 products on this device."""
    peak = max(matmul_rate(side, torch.bfloat16, setup.device) for side in setup.sides)
    return {
        f"{name}, batch {size}": partial(rollout_case, setup, name, size, peak)
        for name in setup.generators
        for size in setup.batches(name)
    }


def rollout_case(setup: Setup, name: str, size: int, peak: float) -> Numbers:
    net = sampler(setup, name)
    batch, one = (ads(setup, net.size, number) for number in (size, 1))
    with torch.no_grad(), autocast(setup.device, setup.precision):
        conditions = net.encode(batch)
        work = rollout_work(net, net.encode(one))
        found = measured(lambda: net.rollout(conditions, net.num_steps), setup.device, setup.repeats)
        whole = seconds(lambda: net.sample(net.encode(batch)), setup.device, setup.repeats)
    rate = size * work / found["seconds"]
    return {
        "pixels": net.size,
        "steps": net.num_steps,
        **found,
        "images/s": size / found["seconds"],
        "images/s, encoded and decoded": size / whole,
        "TFLOP per image": work,
        "TFLOP/s": rate,
        "bfloat16 matmul TFLOP/s": peak,
        "share of matmul": rate / peak,
    }


def rollout_work(net: Generator, conditions: Conditions) -> float:
    """TFLOP of a rollout under these conditions: all steps cost the same, the outline is embedded once."""
    first, second = (tera_operations(lambda stop=stop: net.rollout(conditions, stop)) for stop in (1, 2))
    return first + (net.num_steps - 1) * (second - first)


def compiled(setup: Setup) -> Cases:
    """Rollouts with UNet and ControlNet as they are and with `torch.compile`."""
    ways: dict[str, dict[str, Any] | None] = {
        "eager": None, "compiled": {}, "compiled, CUDA graphs": {"mode": "reduce-overhead"},
    }  # fmt: skip
    if setup.device.type != "cuda":  # without compiling C++; graphs are captured all the same
        ways = {"eager": None, "compiled": {"backend": "eager"}}
    names = {"sd15": 1} if setup.tiny else {"sd15": 4, "showroom": 8}
    return {
        f"{name}, batch {size}, {way}": partial(compiled_case, setup, name, size, options)
        for name, size in names.items()
        for way, options in ways.items()
    }


def compiled_case(setup: Setup, name: str, size: int, options: dict[str, Any] | None) -> Numbers:
    net = new_generator(setup, name).to(setup.dtype)
    torch._dynamo.reset()
    counters.clear()
    if options is not None:
        for part in (net.controlnet,) if setup.tiny else (net.controlnet, net.unet):
            part.compile(**options)
    with torch.no_grad(), autocast(setup.device, setup.precision):
        conditions = net.encode(ads(setup, net.size, size))
        synchronize(setup.device)
        start = time.perf_counter()
        net.rollout(conditions, net.num_steps)
        synchronize(setup.device)
        first = time.perf_counter() - start
        found = measured(lambda: net.rollout(conditions, net.num_steps), setup.device, setup.repeats)
    return {
        "steps": net.num_steps,
        **found,
        "images/s": size / found["seconds"],
        "seconds of the first rollout": first,
        "graphs": counters["stats"]["unique_graphs"],
        "graph breaks": sum(counters["graph_break"].values()),
    }


def tuning(setup: Setup) -> Cases:
    """Training steps of RFFT: rollout, one late step, backward pass, AdamW."""
    if setup.tiny:
        kinds = [("sd15", 1, "controlnet", "cc", True), ("sd15", 1, "unet_lora", "none", True)]
    else:
        kinds = [
            ("sd15", 4, "controlnet", "cc", True), ("sd15", 4, "unet_lora", "cc", True),
            ("sd15", 4, "controlnet", "none", True), ("sd15", 4, "unet_lora", "none", True),
            ("sd15", 4, "controlnet", "cc", False), ("showroom", 8, "controlnet", "cc", False),
        ]  # fmt: skip
    return {
        f"{name}, batch {size}, {trainable}, {regularizer}{', checkpointing' if checkpointing else ''}": partial(
            tuning_case, setup, name, size, trainable, regularizer, checkpointing
        )
        for name, size, trainable, regularizer, checkpointing in kinds
    }


def tuning_case(setup: Setup, name: str, size: int, trainable: str, regularizer: str, checkpointing: bool) -> Numbers:
    net = new_generator(setup, name)
    penalty = ConsistentCondition(1.0) if regularizer == "cc" else NoRegularizer()
    system, loss = rfft(net, RFNetReward(REWARD), trainable, 1, penalty, checkpointing)
    system.to(setup.device)
    if setup.precision == "bfloat16":
        system.trainable.cast_frozen_to_bf16(system.precise)
    weights = [*system.trainable.weights().values()]
    optimizer, batch, seeds = torch.optim.AdamW(weights, lr=1e-5), ads(setup, net.size, size), count()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(setup.device.type, torch.bfloat16, setup.precision == "bfloat16", cache_enabled=False):
            value = loss(batch, next(seeds))
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    found = measured(step, setup.device, setup.repeats)
    return {
        "steps": net.num_steps,
        **found,
        "seconds per gradient sample": found["seconds"] / size,
        "trained weights": sum(weight.numel() for weight in weights),
        "gradient step": "float32" if system.precise else setup.precision,
    }
