"""The names of layers in the original code of Stable Diffusion and ControlNet, for those that diffusers uses."""

import re
from collections.abc import Mapping
from typing import Any

TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def original_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a layer or weight `name` of a UNet or ControlNet with the configuration `config`."""
    if found := BLOCK.match(name):
        start, rest = _block(found[1], int(found[2]), found[3], int(found[4]), config), name[found.end() :]
    elif found := re.match(r"controlnet_(down_blocks|cond_embedding\.blocks|cond_embedding\.conv_out)", name):
        start, rest = _control(found[1], name[found.end() :], config)
    else:
        top = next((top for top in TOP if name == top or name.startswith(f"{top}.")), "")
        start, rest = TOP.get(top, ""), name[len(top) :]
    if re.search(r"(_blocks\.\d+|mid_block)\.resnets\.", name):
        layer = rest.split(".")[1]
        rest = rest.replace(f".{layer}", f".{RESIDUAL.get(layer, layer)}", 1)
    if ".downsamplers." in name:
        rest = rest.replace(".conv", ".op", 1)
    return start + rest


def _block(side: str, level: int, kind: str, layer: int, config: Mapping[str, Any]) -> str:
    size = config["layers_per_block"] + 1
    if side == "down":
        last = size - 1 if kind == "downsamplers" else layer
        return f"input_blocks.{level * size + last + 1}.{int(kind == 'attentions')}"
    if kind != "upsamplers":
        return f"output_blocks.{level * size + layer}.{int(kind == 'attentions')}"
    crossed = str(config["up_block_types"][level]).startswith("CrossAttn")
    return f"output_blocks.{level * size + size - 1}.{1 + crossed}"


def _control(kind: str, rest: str, config: Mapping[str, Any]) -> tuple[str, str]:
    if kind == "cond_embedding.conv_out":
        return f"input_hint_block.{4 * len(config['conditioning_embedding_out_channels']) - 2}", rest
    _, number, rest = re.split(r"^\.(\d+)", rest)
    return (f"zero_convs.{number}.0" if kind == "down_blocks" else f"input_hint_block.{2 * int(number) + 2}"), rest
