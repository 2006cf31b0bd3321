"""LoRA files merged into a generator: the layouts of kohya, LoCon, PEFT and diffusers; and writing kohya's.

A layer of rank r changes a weight W to W + scale * alpha / r * B A. If neither the file nor PEFT's configuration has an
alpha, it is r.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from src.diffusion.original_names import original_name
from src.runtime.files import atomic
from src.runtime.weights import found, logger, state_dict

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "kohya.safetensors")  # in a folder
STARTS = {  # of the names of each network's layers, with "_" in place of "."
    "unet": ("lora_unet_", "unet_", "diffusion_model_", ""),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "controlnet": ("lora_controlnet_", "controlnet_"),
}
KEY = re.compile(
    r"(?P<layer>.+?)\.(?:lora_(?P<new>A|B|down|up|mid)(?:\.\w+)?\.weight|lora(?:_linear_layer)?\.(?P<old>down|up)\.weight"
    r"|(?P<alpha>alpha))"
)
OLD = re.compile(r"\.processor\.(to_\w+?)_lora\.(down|up)\.weight$")  # of diffusers before PEFT
KINDS = {"A": "down", "B": "up"}
UNSUPPORTED = ("dora_scale", "lora_magnitude_vector")  # without them, what remains of the layer is wrong
SHOWN = 4  # names in a message


@torch.no_grad()
def merge_lora(generator: nn.Module, name: str | Path, scale: float = 1.0) -> int:
    """Adds a LoRA to the weights of a generator's UNet, text encoder and ControlNet; returns how many tensors it used.

    name: a file, or a folder or hub id with one of `FILES`. Tensors of layers that the generator does not have are
    named in a warning. Raises ValueError for a file of which none is used, with layers of another shape, with half a
    layer, or of DoRA.
    """
    file = found(name, FILES)
    state = state_dict(file)
    if dora := next((key for key in state if key.endswith(UNSUPPORTED)), ""):
        raise ValueError(f"{file}: {dora}: DoRA is not supported.")
    layers, places, used = _grouped(state), _places(generator), 0
    told, alphas = len(state), _Alphas(file)
    for layer, tensors in layers.items():
        if (place := _place(places, layer)) is None:
            continue
        if missing := {"down", "up"} - tensors.keys():
            raise ValueError(f"{file}: the layer {layer} has no {' and '.join(sorted(missing))} weights.")
        where, weight = place
        change = _change(tensors, weight.shape)
        if change is None:
            shapes = ", ".join(f"{kind} {tuple(tensors[kind].shape)}" for kind in ("down", "up"))
            raise ValueError(
                f"{file}: {layer} ({shapes}) does not fit {where} {tuple(weight.shape)}: it is of another model."
            )
        weight += scale * alphas.factor(layer, tensors) * change.to(weight)
        used += len(tensors)
    unused = [key for key in state if not (m := _parsed(key)) or not _place(places, m[0])]
    first = f"{', '.join(unused[:SHOWN])}{', ...' if len(unused) > SHOWN else ''}"
    if not used:
        raise ValueError(f"{file}: none of its {told} tensors is a LoRA of this generator; the first: {first}.")
    if unused:
        warnings.warn(f"{file}: {len(unused)} of {told} tensors are not used: {first}.", stacklevel=2)
    logger.info("%s: %d of %d tensors used, scale %g", file, used, told, scale)
    return used


def save_kohya(weights: Mapping[str, Tensor], part: str, file: Path) -> None:
    """Writes the adapters of PEFT (`<layer>.lora_A.weight`, B) of "unet" or "controlnet" in kohya's layout.

    ComfyUI and AUTOMATIC1111 read those of the UNet; they have no LoRA of a ControlNet. alpha is the rank.
    """
    state: dict[str, Tensor] = {}
    for layer, tensors in _grouped(weights).items():
        name = STARTS[part][0] + layer.replace(".", "_")
        state[f"{name}.lora_down.weight"] = tensors["down"].contiguous()
        state[f"{name}.lora_up.weight"] = tensors["up"].contiguous()
        state[f"{name}.alpha"] = torch.tensor(float(len(tensors["down"])), dtype=tensors["down"].dtype)
    rank = str(max(len(weight) for name, weight in state.items() if name.endswith("lora_down.weight")))
    about = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    with atomic(file) as unfinished:
        save_file(state, unfinished, metadata={"format": "pt", **about})


class _Alphas:
    """alpha / rank of the layers of a file: from the file, or PEFT's configuration in its header or beside it."""

    def __init__(self, file: Path) -> None:
        config: dict[str, Any] = {}
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                header: dict[str, str] = opened.metadata() or {}
            config = json.loads(header.get("lora_adapter_metadata", "{}"))
        beside = file.with_name("adapter_config.json")
        if not config and file.name == "adapter_model.safetensors" and beside.is_file():
            config = json.loads(beside.read_text(encoding="utf-8"))
        self.config = config

    def factor(self, layer: str, tensors: Mapping[str, Tensor]) -> float:
        rank = len(tensors["down"])
        if "alpha" in tensors:
            return float(tensors["alpha"]) / rank
        part, _, inner = layer.removeprefix("base_model.model.").partition(".")
        own = {key.removeprefix(f"{part}."): value for key, value in self.config.items() if key.startswith(f"{part}.")}
        config, name = (own, inner) if own else (self.config, f"{part}.{inner}")
        patterns = (config.get("alpha_pattern") or {}).items()
        alpha = next(
            (a for pattern, a in patterns if re.fullmatch(rf"(.*\.)?{pattern}", name)), config.get("lora_alpha")
        )
        return 1.0 if alpha is None else alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _parsed(key: str) -> tuple[str, str] | None:
    """(layer, "down", "up", "mid" or "alpha") of the name of a tensor; None if it is of no LoRA."""
    key = OLD.sub(lambda m: f".{'to_out.0' if m[1] == 'to_out' else m[1]}.lora.{m[2]}.weight", key)
    m = KEY.fullmatch(key)
    return (m["layer"], KINDS.get(m["new"], m["new"]) or m["old"] or "alpha") if m else None


def _grouped(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if m := _parsed(key):
            layers.setdefault(m[0], {})[m[1]] = tensor.detach()
    return layers


def _places(generator: Any) -> dict[str, tuple[str, Tensor]]:
    """The weights of all linear layers and convolutions, by each name that files use, with "_" in place of "."."""
    return {
        start + name.replace(".", "_"): (f"{part}.{layer}", module.weight)
        for part, starts in STARTS.items()
        for layer, module in getattr(generator, part).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for name in _names(part, layer, getattr(generator, part).config)
        for start in starts
    }


def _names(part: str, layer: str, config: Any) -> Iterator[str]:
    yield layer
    if part == "unet":
        yield original_name(layer, config)
    if part == "text_encoder":  # newer versions of transformers leave this out
        yield f"text_model.{layer.removeprefix('text_model.')}"


def _place(places: Mapping[str, tuple[str, Tensor]], layer: str) -> tuple[str, Tensor] | None:
    return places.get(layer.removeprefix("base_model.model.").replace(".", "_"))


def _change(tensors: Mapping[str, Tensor], shape: torch.Size) -> Tensor | None:
    """B A in the shape of the weight, of layers, convolutions, and convolutions with a core (`mid`); None: no fit."""
    down, up = tensors["down"].float().flatten(1), tensors["up"].float().flatten(1)
    if "mid" in tensors:
        mid = tensors["mid"].float()
        if mid.ndim != 4 or mid.shape[:2] != (up.shape[1], len(down)):
            return None
        product = torch.einsum("nmkl,in,mj->ijkl", mid, up, down)
    elif up.shape[1] != len(down):
        return None
    else:
        product = up @ down
    fits = len(product) == shape[0] and product.numel() == shape.numel()
    return product.reshape(shape) if fits else None
