"""Checkpoint folders: weights (safetensors), configuration, metrics and a model card; self-contained, without pickle.

    model.safetensors   the state dict of `system.net`
    config.yaml         model: {_target_: src...., arguments}; values that begin with ./ are paths in the folder
    metrics.json        {"test/...": number}
    README.md           the generated model card

and the files written by `assets` of the system, such as a tokenizer. A system with `own_layout` writes its weights in
the layout of another library instead of model.safetensors; the arguments returned by `assets` load them.
"""

import hashlib
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from yaml import YAMLError

from src.build import build, loadable, targets
from src.runtime.card import ABOUT, card, without_folders
from src.runtime.files import atomic, json_numbers, write_json
from src.runtime.system import System

WEIGHTS, CONFIG, METRICS, CARD = "model.safetensors", "config.yaml", "metrics.json", "README.md"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
SHOWN = 5  # keys named in an error
Kind = TypeVar("Kind", bound=System)
ROOT = Path(__file__).parents[2]
_LOADING: list[Path] = []  # the folders that are being loaded: the configuration of each may load others


def located(name: str | Path) -> Path:
    """The path `name`, or that path in the project folder if only this exists, as for shipped checkpoints."""
    return ROOT / name if not Path(name).exists() and (ROOT / name).exists() else Path(name)


def save(
    folder: str | Path,
    system: System,
    model_config: Mapping[str, Any],
    metrics: Mapping[str, float],
    about: Mapping[str, str],
    dtype: str = "float32",
) -> None:
    """Writes the checkpoint folder of `system`; metrics are written last, so that a folder with metrics is complete.

    Args:
        model_config: the plain `{_target_: ..., arguments}` that builds the system.
        metrics: values by name, such as {"test/availability_f1": 0.88}.
        about: texts of the model card, one for each of `ABOUT`; `data` states whether the data are synthetic.
        dtype: type of the saved weights, "float32" or "float16"; loading casts to float32.

    Raises ValueError if a text is missing, or a weight is not finite or overflows float16.
    """
    if missing := [part for part in ABOUT if not about.get(part)]:
        raise ValueError(f"{folder}: the model card lacks {', '.join(missing)}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose from {', '.join(DTYPES)}.")
    folder = Path(folder)
    state = {} if system.own_layout else _untied(system.net)
    weights = {key: _stored(key, value, DTYPES[dtype]) for key, value in state.items()}
    for key, value in system.net.state_dict().items() if system.own_layout else ():
        _stored(key, value, DTYPES[dtype])  # raises before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / METRICS, *folder.rglob("*.safetensors")):
        old.unlink(missing_ok=True)
    model = {**model_config, **system.assets(folder)}
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create({"model": model})), encoding="utf-8")
    numbers = json_numbers(metrics)
    (folder / CARD).write_text(card(system, numbers, about, dtype), encoding="utf-8")
    if system.own_layout:
        system.save_weights(folder, DTYPES[dtype])
    else:
        with atomic(folder / WEIGHTS) as part:
            save_file(weights, part, metadata={"format": "pt"})
    write_json(folder / METRICS, numbers)


def round_weights(net: nn.Module, dtype: str) -> None:
    """Rounds the weights in place to `dtype`, so that they are tested as they are saved.

    Adapters are rounded before they are merged. Raises ValueError if a weight is not finite or overflows float16.
    """
    with torch.no_grad():
        for name, weight in net.state_dict().items():  # not what is not saved, such as masks of minus infinity
            if weight.is_floating_point():
                weight.copy_(_stored(name, weight, DTYPES[dtype]))


@loadable
def load(folder: str | Path, kind: type[Kind] = System) -> Kind:
    """The system of a checkpoint folder, in eval mode on the CPU; the global random state does not change.

    Raises ValueError naming the file if it is missing, truncated or unreadable, the weights do not match, or the system
    is not of the `kind`.
    """
    folder = located(folder)
    node = model_config(folder)
    if (place := folder.resolve()) in _LOADING:
        raise ValueError(f"{folder / CONFIG}: the configuration loads its own folder.")
    _LOADING.append(place)
    try:
        for name, target in targets(node):
            if not (isinstance(target, type) and issubclass(target, nn.Module)) and not hasattr(target, "loadable"):
                raise ValueError(
                    f"{name} is not allowed in a checkpoint configuration: it is not a system, reward, "
                    "generator or part of one."
                )
        with torch.random.fork_rng(devices=[]):
            system = build(node)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    finally:
        _LOADING.pop()
    if not isinstance(system, kind):
        raise ValueError(f"{folder} holds {type(system).__name__}, not {kind.__name__}.")
    if not system.own_layout:
        load_weights(system.net, folder)
    return system.eval()


def model_config(folder: str | Path) -> dict[str, Any]:
    """The plain `{_target_: ..., arguments}` of a checkpoint folder, with resolved paths."""
    folder = located(folder)
    file = folder / CONFIG
    _exists(file)
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable YAML: {' '.join(str(error).split())}") from None
    node = content.get("model") if isinstance(content, dict) else None
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(f"{file} has no model with a _target_.")
    return _whole(node, folder, file)


def load_weights(net: nn.Module, folder: str | Path) -> None:
    """Loads the weights of a checkpoint folder into `net`, cast to its types; all keys and shapes must match."""
    file = located(folder) / WEIGHTS
    fill(net, read_weights(file), file)


def fill(net: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Loads the state dict of a file into `net`, cast to its types; ValueError unless all keys and shapes match."""
    own = _untied(net)
    problems = [
        f"{what} {', '.join(keys[:SHOWN])}{f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''}"
        for what, keys in (
            ("lacks", sorted(own.keys() - state.keys())),
            ("has the unknown", sorted(state.keys() - own.keys())),
            ("has another shape for", [
                f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                for key in sorted(own.keys() & state.keys())
                if state[key].shape != own[key].shape
            ]),
        )
        if keys
    ]  # fmt: skip
    if problems:
        fit = sum(value.shape == own[key].shape for key, value in state.items() if key in own)
        counted = f"{fit} of {len(own)} tensors match"
        raise ValueError(f"{file} does not fit {type(net).__name__}: it {'; '.join(problems)}; {counted}.")
    net.load_state_dict(state, strict=False)  # tied weights have one name in the file


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a foreign .pt or .pth file (`weights_only=True`).

    Raises ValueError for a file that is missing or damaged, and for one with other objects: with the class of the first
    and the command that extracts the tensors.
    """
    file = Path(file)
    _exists(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}") from None
    except Exception as error:  # torch.load raises many kinds of errors
        told = f"{file} cannot be read as plain weights"
        if foreign := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            out = file.with_suffix(".safetensors")
            told += f": it holds {foreign[1]}; python -m src.runtime.convert {file} {out} extracts the tensors"
            raise ValueError(f"{told}, and runs no code of the file.") from None
        raise ValueError(f"{told}: {str(error).splitlines()[0]}") from None


def licence_of(folder: str | Path) -> str:
    """The license in the model card of a folder, or a reference to the original weights if there is none."""
    file = located(folder) / CARD
    told = re.search(r"^license: *(\S+)$", file.read_text(encoding="utf-8"), re.M) if file.is_file() else None
    if told and told[1] != "other":
        return "Apache-2.0" if told[1] == "apache-2.0" else told[1]
    return f"Other: that of {without_folders(str(folder))}, from whose weights these were trained."


def fingerprint(net: nn.Module, without: Container[str] = ()) -> str:
    """A hash of the names and values of all weights except `without`, independent of their device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted((name, tensor) for name, tensor in net.state_dict().items() if name not in without):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _untied(net: nn.Module) -> dict[str, Tensor]:
    """The state dict, in which a tensor with several names, such as tied embeddings, has only the first."""
    names: dict[Any, str] = {}
    state = net.state_dict()
    return {
        key: value
        for key, value in state.items()
        if not value.numel() or names.setdefault((value.data_ptr(), value.shape), key) == key
    }


def _stored(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu()
    if not value.is_floating_point():
        return value.clone().contiguous()
    stored = value.to(dtype, copy=True).contiguous()
    if not stored.isfinite().all():
        why = f"does not fit {dtype}" if value.isfinite().all() else "is not finite"
        raise ValueError(f"The weight {key} {why}; nothing was saved.")
    return stored


def _whole(node: Any, folder: Path, file: Path) -> Any:
    """The node with paths in the folder made whole. Raises ValueError for an interpolation: it could read anything."""
    if isinstance(node, dict):
        return {key: _whole(value, folder, file) for key, value in node.items()}
    if isinstance(node, list):
        return [_whole(value, folder, file) for value in node]
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"{file}: {node!r} is an interpolation; a checkpoint's configuration has plain values only.")
    return str(folder / node) if isinstance(node, str) and node.startswith("./") else node


def _exists(file: Path) -> None:
    if not file.parent.is_dir():
        raise ValueError(f"There is no checkpoint folder {file.parent}.")
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a complete checkpoint folder: {file.name} is missing.")
