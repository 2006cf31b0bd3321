"""Configurations of the networks of Stable Diffusion 1 and 2, read from the shapes of their weights.

The number of attention heads and of normalization groups is not in the shapes: it is that of the original code.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
GROUPS = 32  # of each group normalization
HEADS = 8  # of each attention of Stable Diffusion 1
HEAD_WIDTH = 64  # channels of a head of Stable Diffusion 2 and of the text encoders
SCALING = 0.18215  # of the latents
State = Mapping[str, Tensor]


def unet_config(state: State, sample_size: int) -> dict[str, Any]:
    """The arguments of a UNet2DConditionModel with these weights; `sample_size`: side of its latents."""
    ups = _blocks(state, "up_blocks.", "Up")
    return _down_config(state) | {
        "sample_size": sample_size,
        "out_channels": state["conv_out.weight"].shape[0],
        "up_block_types": ups,
    }


def controlnet_config(state: State) -> dict[str, Any]:
    """The arguments of a ControlNetModel with these weights."""
    layers = range(1, count(state, "controlnet_cond_embedding.blocks."), 2)
    edges = ["controlnet_cond_embedding.conv_in", *(f"controlnet_cond_embedding.blocks.{i}" for i in layers)]
    return _down_config(state) | {
        "conditioning_channels": state[f"{edges[0]}.weight"].shape[1],
        "conditioning_embedding_out_channels": [state[f"{edge}.weight"].shape[0] for edge in edges],
    }


def vae_config(state: State, size: int) -> dict[str, Any]:
    """The arguments of an AutoencoderKL with these weights; `size`: side of its images in px."""
    channels = _channels(state, "encoder.down_blocks.")
    return {
        "sample_size": size,
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": count(state, "encoder.down_blocks.0.resnets."),
        "norm_num_groups": GROUPS,
        "scaling_factor": SCALING,
    }


def text_config(state: State, second: bool) -> dict[str, Any]:
    """The arguments of a CLIPTextConfig; `second`: of Stable Diffusion 2 (OpenCLIP), otherwise of 1 (OpenAI's CLIP).

    Names without the `text_model.` in front.
    """
    words, width = state["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(state, "encoder.layers."),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "gelu" if second else "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0 if second else words - 1,
    }


def linear_projections(state: State) -> bool:
    """Whether the attention layers of a UNet are those of Stable Diffusion 2."""
    return any(key.endswith(".proj_in.weight") and weight.ndim == 2 for key, weight in state.items())


def count(state: State, start: str) -> int:
    """How many different numbers follow `start` in the names."""
    return len({key[len(start) :].partition(".")[0] for key in state if key.startswith(start)})


def _down_config(state: State) -> dict[str, Any]:
    channels, linear = _channels(state, "down_blocks."), linear_projections(state)
    widths = {weight.shape[1] for key, weight in state.items() if key.endswith(".attn2.to_k.weight")}
    return {
        "in_channels": state["conv_in.weight"].shape[1],
        "block_out_channels": channels,
        "layers_per_block": count(state, "down_blocks.0.resnets."),
        "down_block_types": _blocks(state, "down_blocks.", "Down"),
        "cross_attention_dim": max(widths, default=0),
        "attention_head_dim": [max(1, width // HEAD_WIDTH) for width in channels] if linear else HEADS,  # heads
        "use_linear_projection": linear,
        "norm_num_groups": GROUPS,
    }


def _channels(state: State, start: str) -> list[int]:
    return [state[f"{start}{i}.resnets.0.conv2.weight"].shape[0] for i in range(count(state, start))]


def _blocks(state: State, start: str, kind: str) -> list[str]:
    crossed = [any(key.startswith(f"{start}{i}.attentions.") for key in state) for i in range(count(state, start))]
    return [f"{'CrossAttn' if cross else ''}{kind}Block2D" for cross in crossed]
