"""Device and precision of a command."""

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_device(name: str | None) -> torch.device:
    """The device of that name; "auto": a GPU if available. Raises ValueError if it does not exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name or "null").device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name or 'null'}: {str(error).splitlines()[0]}") from None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bfloat16, or disabled for float32. Raises ValueError for any other precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision}: choose one of {', '.join(PRECISIONS)}.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
