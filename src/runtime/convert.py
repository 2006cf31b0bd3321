"""Makes safetensors of a pickled file of weights, without building any other object in it.

    python -m src.runtime.convert HPS_v2.pt HPS_v2.safetensors

Classes and functions that are not needed for tensors are replaced by one that does nothing, so that no code of the file
runs.
"""

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2

from src.runtime.command import example_command
from src.runtime.files import atomic

ENTRIES = ("state_dict", "model_state_dict", "model")  # that hold the tensors among other things, the first found
NEEDED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class Anything:
    """Stands for an object that is not built: it accepts what a pickle does to objects, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Anything":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def _ignore(self, *_: Any, **__: Any) -> "Anything":
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class TensorsOnly(pickle.Unpickler):
    """An unpickler of tensors and plain containers; everything else becomes `Anything`."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        return NEEDED.get((module, name), Anything)


def convert(source: str, target: str) -> Path:
    """Writes the tensors of a .pt, .pth, .bin or .ckpt file to the .safetensors file `target`, with the same types.

    If the file has an entry state_dict, model_state_dict or model, only that is written. Raises ValueError if it cannot
    be read or holds no tensors by name.
    """
    file, out = Path(source), Path(target)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: choose a name that ends in .safetensors.")
    found = _content(file)
    for entry in ENTRIES:
        if isinstance(found, dict) and isinstance(found.get(entry), dict):
            found = found[entry]
            break
    found = found if isinstance(found, dict) else {}
    named = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not named:
        raise ValueError(f"{file} holds no tensors by name; its entries: {', '.join(map(str, found)) or 'none'}.")
    with atomic(out) as part:
        save_file({name: value.detach().clone().contiguous() for name, value in named.items()}, part)
    return out


def _content(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"There is no file {file}.")
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(f"{file} is a TorchScript program, not a file of weights.")
    reader: Any = SimpleNamespace(__name__=__name__, Unpickler=TensorsOnly, load=_load)
    try:
        return torch.load(file, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # a damaged pickle raises many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} is damaged, or no file of weights: {reason}") from None


def _load(*arguments: Any, **options: Any) -> Any:
    return TensorsOnly(*arguments, **options).load()


if __name__ == "__main__":
    sys.exit(example_command("src.runtime.convert", convert))
