"""Published weights: found as a file, in a folder or on the hub, read without unpickling, and loaded as a whole."""

import logging
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from src.runtime.checkpoint import fill, located, read_weights

PREFIXES = ("module.", "_orig_mod.", "model.")  # that DDP, torch.compile and Lightning put before every name
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
logger = logging.getLogger(__name__)


def found(name: str | Path, files: Sequence[str]) -> Path:
    """The file of weights `name`, or the first of `files` that the folder or the repository owner/name on the hub has.

    Files of the hub are downloaded once. Raises ValueError if there is none, saying where it was looked for.
    """
    place = located(name)
    if place.is_file():
        return place
    if place.is_dir():
        if file := next((place / file for file in files if (place / file).is_file()), None):
            return file
        raise ValueError(f"{place} has none of the files {', '.join(files)}.")
    if not HUB_ID.fullmatch(str(name)) or place.suffix in SUFFIXES:
        raise ValueError(f"There is no file or folder {name}.")
    reason = ""
    for file in files:
        try:
            return Path(hf_hub_download(str(name), file))
        except EntryNotFoundError as error:  # the next may be there
            reason = str(error)
        except (OSError, ValueError) as error:
            reason = str(error)
            break
    raise ValueError(
        f"{name}: there is no such file or folder, and the hub does not give {' or '.join(files)}: "
        f"{' '.join(reason.split())[:200]}"
    )


def state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors in a file by name, of its entry state_dict if it has one, without the PREFIXES that all names have.

    Raises ValueError if the file cannot be read safely, or holds anything else there.
    """
    state: Any = read_weights(file)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no state dict.")
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fill_all(net: nn.Module, state: Mapping[str, Tensor], file: Path, unused: Container[str] = ()) -> None:
    """Loads a state dict without its `unused` names into `net`, as `fill` does; logs the number of tensors."""
    fill(net, used := {key: value for key, value in state.items() if key not in unused}, file)
    logger.info("%s: %d tensors loaded, none missing", file, len(used))
