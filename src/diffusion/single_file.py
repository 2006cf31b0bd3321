"""Stable Diffusion 1.x, 2.x and their ControlNets in one file, in the original or diffusers' layout of the names.

The networks are converted by diffusers and configured by the shapes of the weights; nothing is downloaded. All weights
of a network must be in the file, with the right shapes.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from src.diffusion import stable_diffusion as sd
from src.runtime.weights import fill_all, state_dict

PARTS = {  # the beginnings of the names of each part: originally, and in files with diffusers' names
    "unet": ("model.diffusion_model.", "unet."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "text_encoder."),
    "controlnet": ("control_model.", "controlnet."),
}
LARGE = ("conditioner.embedders.", "model.diffusion_model.label_emb.", "unet.add_embedding.", "label_emb.")  # SDXL
HINT, EDGES = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
LAST_HINT = 14  # the number that diffusers' converter expects for the last layer of the edge embedding
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
SHOWN = 4  # names in an error
State = dict[str, Tensor]


class SingleFile:
    """The networks in one file. Raises ValueError, with the file's first names, for one of another kind."""

    def __init__(self, file: Path) -> None:
        self.file, self.state = file, state_dict(file)
        if large := next((key for key in self.state if key.startswith(LARGE)), ""):
            raise ValueError(f"{file} is not of Stable Diffusion 1 or 2 ({large}); SDXL is not supported.")

    @property
    def first_names(self) -> str:
        return f"{len(self.state)} tensors: {', '.join(list(self.state)[:SHOWN])}, ..."

    def check_whole(self) -> None:
        """Raises ValueError naming the parts of a generator that are missing; a ControlNet may be."""
        if missing := [part for part in ("unet", "vae", "text_encoder") if not self.part(part)]:
            known = "; ".join(f"{part}: {' or '.join(PARTS[part])}" for part in missing)
            raise ValueError(f"{self.file} has no {', '.join(missing)} ({known}). It has {self.first_names}")

    def part(self, name: str) -> State:
        """The tensors of a part without the beginning of their names; empty if there are none."""
        for start in PARTS[name]:
            if found := {key.removeprefix(start): value for key, value in self.state.items() if key.startswith(start)}:
                return found
        return {}

    @property
    def second(self) -> bool:
        """Whether it is a Stable Diffusion 2."""
        return sd.linear_projections(self.part("unet"))

    def unet(self, sample_size: int) -> Any:
        """The UNet; `sample_size`: side of the latents it was trained on."""
        state = self.part("unet")
        if "input_blocks.0.0.weight" in state:
            whole = {f"model.diffusion_model.{key}": value for key, value in state.items()}
            state = convert_ldm_unet_checkpoint(whole, {"layers_per_block": _layers(state)})
        return self._net("unet", UNet2DConditionModel, state, lambda: sd.unet_config(state, sample_size))

    def vae(self, size: int) -> Any:
        """The VAE; `size`: side in px of the images it was trained on."""
        state = {key: value for key, value in self.part("vae").items() if not key.startswith("loss.")}
        if "encoder.norm_out.weight" in state:
            levels = ["" for _ in range(sd.count(state, "encoder.down."))]
            state = convert_ldm_vae_checkpoint(state, {"down_block_types": levels, "up_block_types": levels})
        for old, new in OLD_ATTENTION.items():
            state = {key.replace(old, new): value for key, value in state.items()}
        return self._net("vae", AutoencoderKL, state, lambda: sd.vae_config(state, size))

    def text_encoder(self) -> Any:
        """The text encoder; of Stable Diffusion 2 without its last layer, as it is used there."""
        state, second = self.part("text_encoder"), self.second
        if "model.token_embedding.weight" in state:
            last = f"model.transformer.resblocks.{sd.count(state, 'model.transformer.resblocks.') - 1}."
            state = {key: value for key, value in state.items() if not key.startswith(last)}
            width = SimpleNamespace(config=SimpleNamespace(hidden_size=state["model.token_embedding.weight"].shape[1]))
            state.pop("model.text_projection", None)
            state = convert_open_clip_checkpoint(width, state, prefix="model.")
        state = {key.removeprefix("transformer.").removeprefix("text_model."): v for key, v in state.items()}
        state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
        return self._net("text_encoder", _text_encoder, state, lambda: sd.text_config(state, second))

    def controlnet(self) -> Any:
        """The ControlNet, of a file that has only that or a whole generator."""
        state = self.part("controlnet") or self.state
        if HINT in state:
            layers = [int(key.split(".")[1]) for key in state if key.startswith("input_hint_block.")]
            last, moved = f"input_hint_block.{max(layers)}.", f"input_hint_block.{LAST_HINT}."
            state = {re.sub(f"^{re.escape(last)}", moved, key): value for key, value in state.items()}
            state = convert_controlnet_checkpoint(state, {"layers_per_block": _layers(state)})
        elif EDGES not in state:
            raise ValueError(
                f"{self.file} is no ControlNet: it has neither {HINT} (original layout) nor {EDGES} (diffusers). "
                f"It has {self.first_names}"
            )
        return self._net("controlnet", ControlNetModel, state, lambda: sd.controlnet_config(state))

    def _net(self, part: str, kind: Any, state: Mapping[str, Tensor | None], config: Any) -> Any:
        for key in [key for key, value in state.items() if value is None]:  # that the converter did not find
            del state[key]  # pyright: ignore[reportIndexIssue]
        try:
            made = config()
        except KeyError as error:
            raise ValueError(f"{self.file}: its {part} lacks {error}. It has {self.first_names}") from None
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = kind(**made)
        start = "text_model." if any(key.startswith("text_model.") for key in net.state_dict()) else ""  # by version
        fill_all(net, {f"{start}{key}": value for key, value in state.items()}, self.file)  # pyright: ignore
        return net


def _text_encoder(**config: Any) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**config))


def _layers(state: State) -> int:
    """Residual blocks per level of a network with the original names."""
    blocks = sd.count(state, "input_blocks.")
    levels = 1 + sum(key.endswith(".0.op.weight") and key.startswith("input_blocks.") for key in state)
    return blocks // levels - 1
