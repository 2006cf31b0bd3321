"""Device and precision of a command."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_device(name: str | None) -> torch.device:
    """The device of that name; "auto": a GPU if available. Raises ValueError if it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=int(name) if name and name.isdecimal() else name or "null").device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name or 'null'}: {str(error).splitlines()[0]}") from None


def check_accelerator(name: str) -> None:
    """Raises ValueError for an accelerator of Lightning that is not there, before anything is built for it."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not (there | {"gpu": any(there.values())}).get(name, True):
        raise ValueError(f"trainer.accelerator={name}: there is none here; choose cpu or auto.")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bfloat16, or disabled for float32. Raises ValueError for any other precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def in_own_precision(*nets: nn.Module) -> AbstractContextManager[Any]:
    """Without autocast if all weights of the networks are bfloat16; otherwise nothing changes.

    On GPUs autocast computes group and layer norms, and the activations after them, in float32: slower, and twice the
    memory.
    """
    weights = [weight for net in nets for weight in net.parameters()]
    if all(weight.dtype == torch.bfloat16 for weight in weights):
        return torch.autocast(weights[0].device.type, enabled=False)
    return nullcontext()


def machine(device: torch.device, world_size: int = 1) -> str:
    """The hardware of the run, such as "2 x NVIDIA H100" or "2 CPU cores, x86_64"."""
    if device.type == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} {'CPU' if device.type == 'cpu' else device.type} cores, {platform.machine()}"
