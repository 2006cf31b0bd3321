"""Time, floating point operations and memory of an action on a CPU or GPU."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tuning import Peak


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device, repeats: int = 3, warmup: int = 1) -> float:
    """The median of `repeats` runs after `warmup` runs."""
    found = []
    for run in range(warmup + repeats):
        synchronize(device)
        start = time.perf_counter()
        action()
        synchronize(device)
        if run >= warmup:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def tera_operations(action: Callable[[], object]) -> float:
    """Floating point operations of matrix products and convolutions, in 10^12; a multiply-add counts as two.

    Attention is computed as plain products, so that the number does not depend on the kernel.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops() / 1e12


def measured(action: Callable[[], object], device: torch.device, repeats: int = 3) -> dict[str, float]:
    """The median of seconds, and the peak of memory in GiB: of the device, or of the process on a CPU."""
    with Peak(device) as peak:
        found = seconds(action, device, repeats)
    return {"seconds": found, "peak GiB": peak.all / 1024}


def matmul_rate(side: int, dtype: torch.dtype, device: torch.device, repeats: int = 5, times: int = 10) -> float:
    """TFLOP/s of products of square matrices with normal entries; the median of `repeats` runs of `times` products."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    work = tera_operations(lambda: torch.mm(a, b))

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return times * work / seconds(run, device, repeats)


def copy_rate(megabytes: int, device: torch.device) -> float:
    """GB/s read and written by a copy within the memory of the device."""
    source = torch.empty(megabytes * 10**6, dtype=torch.uint8, device=device).fill_(1)
    copy = torch.empty_like(source)
    return 2 * megabytes / 1e3 / seconds(lambda: copy.copy_(source), device, repeats=10)
