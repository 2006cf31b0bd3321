"""The weights of a generator under the names of the original code, written down independently of what reads them."""

from typing import Any

import torch
from torch import Tensor

from src.diffusion.original_names import original_name

VAE = {
    "conv_norm_out": "norm_out", "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample", "resnets": "block",
}  # fmt: skip


def unet(net: Any, start: str) -> dict[str, Tensor]:
    """Of a UNet or a ControlNet."""
    return {start + original_name(name, net.config): weight for name, weight in net.state_dict().items()}


def vae(net: Any) -> dict[str, Tensor]:
    levels, state = len(net.config["block_out_channels"]), {}
    for name, weight in net.state_dict().items():
        for new, old in VAE.items():
            name = name.replace(new, old)
        for level in range(levels):
            name = name.replace(f"down_blocks.{level}.", f"down.{level}.")
            name = name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
        is_conv = ".attn_1." in name and name.endswith("weight") and weight.ndim == 2
        state[f"first_stage_model.{name}"] = weight[..., None, None] if is_conv else weight
    return state


def clip(net: Any) -> dict[str, Tensor]:
    """Of Stable Diffusion 1."""
    state = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in net.state_dict().items()}
    positions = torch.arange(net.config.max_position_embeddings)[None]
    state["text_model.embeddings.position_ids"] = positions
    return {f"cond_stage_model.transformer.{name}": weight for name, weight in state.items()}


def open_clip(net: Any) -> dict[str, Tensor]:
    """Of Stable Diffusion 2, which has one more layer that is not used."""
    own = {name.removeprefix("text_model."): weight for name, weight in net.state_dict().items()}
    state = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"], "ln_final.bias": own["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6), "text_projection": torch.eye(net.config.hidden_size),
    }  # fmt: skip
    layers = net.config.num_hidden_layers
    for number in range(layers + 1):
        layer, block = f"encoder.layers.{min(number, layers - 1)}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            parts = [own[f"{layer}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            state[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            names = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
            for new, old in (names | {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}).items():
                state[f"{block}{old}.{kind}"] = own[f"{layer}{new}.{kind}"]
    return {f"cond_stage_model.model.{name}": weight for name, weight in state.items()}


def whole(generator: Any, version: int) -> dict[str, Tensor]:
    """A file as it is published: networks, and what only training needs."""
    words = clip(generator.text_encoder) if version == 1 else open_clip(generator.text_encoder)
    networks = unet(generator.unet, "model.diffusion_model.") | vae(generator.vae) | words
    state = networks | {"alphas_cumprod": torch.rand(1000), "model_ema.decay": torch.tensor(0.99)}
    return {name: weight.detach().clone().contiguous() for name, weight in state.items()}
