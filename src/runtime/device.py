"""Where and how precisely a command computes."""

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_device(name: str | None) -> torch.device:
    """The device of that name; "auto": a GPU if there is one. Raises ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name or "null").device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name or 'null'}: {str(error).splitlines()[0]}") from None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Runs networks in bfloat16, or as they are for float32. Raises ValueError for another precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
