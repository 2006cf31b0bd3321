"""What the parts of a generator must have in common: compared when it is built, not found out by a tensor later."""

from collections.abc import Iterator, Mapping
from typing import Any

FOREIGN = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
)  # inputs that Stable Diffusion 1 and 2 lack


def check_schedule(config: Mapping[str, Any], place: str) -> None:
    """Raises ValueError for the configuration of a scheduler without betas, such as one of flow matching."""
    if not config.get("trained_betas") and not {"beta_start", "beta_end"} <= config.keys():
        raise ValueError(f"{place}: {config.get('_class_name')} is no diffusion schedule: it has no betas.")


def check_parts(tokenizer: Any, text_encoder: Any, vae: Any, unet: Any, controlnet: Any, scheduler: Any) -> None:
    """Raises ValueError with all reasons why the parts do not fit together, or are not supported."""
    if problems := list(
        _problems(tokenizer, text_encoder.config, vae.config, unet.config, controlnet.config, scheduler)
    ):
        raise ValueError(f"the parts of the generator do not fit: {'; '.join(problems)}.")


def _problems(tokenizer: Any, text: Any, vae: Any, unet: Any, controlnet: Any, scheduler: Any) -> Iterator[str]:
    nets = {"UNet": unet, "ControlNet": controlnet}
    for name, net in nets.items():
        if foreign := [f"{key} {net[key]}" for key in FOREIGN if net.get(key)]:
            yield f"the {name} is not of Stable Diffusion 1 or 2 ({', '.join(foreign)}); SDXL is not supported"
            return
        if _whole(width := net["cross_attention_dim"]) != text.hidden_size:
            yield f"the {name} needs text of width {width}, the text encoder's is {text.hidden_size}"
        if net["in_channels"] != vae["latent_channels"]:
            yield (
                f"the {name} has {net['in_channels']} input channels, the VAE {vae['latent_channels']} latent "
                "channels; inpainting UNets (9 channels) are not supported"
            )
    if unet["out_channels"] != unet["in_channels"]:
        yield f"the UNet has {unet['in_channels']} input and {unet['out_channels']} output channels"
    for key in ("block_out_channels", "layers_per_block"):
        if _whole(unet[key]) != _whole(controlnet[key]):
            yield f"{key} of the UNet is {unet[key]}, of the ControlNet {controlnet[key]}"
    edges, cells = (
        2 ** (len(channels) - 1)
        for channels in (controlnet["conditioning_embedding_out_channels"], vae["block_out_channels"])
    )
    if edges != cells:
        yield f"the ControlNet reduces outlines by {edges}, the VAE images by {cells}"
    if len(tokenizer) > text.vocab_size:
        yield f"the tokenizer has {len(tokenizer)} tokens, the text encoder {text.vocab_size}"
    if tokenizer.model_max_length > text.max_position_embeddings:
        yield (
            f"the tokenizer's prompts have up to {tokenizer.model_max_length} tokens, "
            f"the text encoder's {text.max_position_embeddings}"
        )
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        yield f"the scheduler's prediction_type is {kind}; supported: epsilon, v_prediction"
    if scheduler.config.get("rescale_betas_zero_snr") and kind == "epsilon":
        yield "the scheduler's rescale_betas_zero_snr needs prediction_type v_prediction"


def _whole(value: Any) -> Any:
    """The value of a list that repeats it for each block, otherwise the list as a tuple, or the value itself."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)
