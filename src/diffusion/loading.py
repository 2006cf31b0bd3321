"""Loading generators, and parts of them, from folders and hub ids in the diffusers layout."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from src.build import loadable
from src.diffusion.generator import SETTINGS, Generator
from src.diffusion.parts import check_schedule
from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.runtime.checkpoint import CONFIG, located, model_config

AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, ResidualAutoencoder)}


@loadable
def load_generator(
    folder: str | Path, controlnet: str | Path | ControlNetModel | None = None, **settings: Any
) -> Generator:
    """Loads a generator in float32 from a folder or hub id in the diffusers layout. `settings`: see `Generator`.

    Settings that are missing or None come from the `config.yaml` of a local folder, or are `Generator`'s defaults.
    `controlnet`: a ControlNet, or a folder or hub id, which is used only if `folder` has no ControlNet of its own.
    Betas and prediction type come from the folder's scheduler, whatever its class; sampling is DDIM without clipping,
    with leading timesteps, or trailing ones with rescale_betas_zero_snr (Lin et al. 2024, arXiv 2305.08891).
    Raises ValueError naming the folder and the part that is missing or cannot be read, and parts that do not fit.
    """
    ddim: Any = DDIMScheduler
    noise = part_of(DDIMScheduler, folder, "scheduler").config
    check_schedule(ddim.load_config(str(located(folder)), subfolder="scheduler"), f"{folder}/scheduler")
    spacing = "trailing" if noise["rescale_betas_zero_snr"] else "leading"
    edges: Any = controlnet
    if not isinstance(controlnet, ControlNetModel):
        own = not controlnet or has_controlnet(folder)
        edges = part_of(ControlNetModel, folder, "controlnet") if own else part_of(ControlNetModel, str(controlnet))
    known = model_config(folder).get("generator", {}) if (located(folder) / CONFIG).is_file() else {}
    known = {name: value for name, value in known.items() if name in SETTINGS}
    generator = Generator(
        part_of(CLIPTokenizer, folder, "tokenizer"),
        part_of(CLIPTextModel, folder, "text_encoder"),
        autoencoder_of(folder, "vae"),
        part_of(UNet2DConditionModel, folder, "unet"),
        edges,
        ddim.from_config(noise, timestep_spacing=spacing, clip_sample=False, thresholding=False),
        **known | {name: value for name, value in settings.items() if value is not None},
    )
    generator.origin = str(folder)
    return generator


def has_controlnet(folder: str | Path) -> bool:
    """Whether a folder or hub id has its own ControlNet."""
    try:
        ControlNetModel.load_config(str(located(folder)), subfolder="controlnet")
    except OSError:
        return False
    return True


def autoencoder_of(folder: str | Path, subfolder: str = "") -> Any:
    """Loads the VAE of a folder or hub id, of the class in `AUTOENCODERS` that its configuration names, in float32."""
    try:
        config: Any = AutoencoderKL.load_config(_place(folder), subfolder=subfolder)
    except OSError:
        config = {}  # the error of `part_of` says what is missing
    name = config.get("_class_name", AutoencoderKL.__name__)
    if name not in AUTOENCODERS:
        raise ValueError(f"{Path(folder) / subfolder}: {name} is not supported: choose from {', '.join(AUTOENCODERS)}.")
    return part_of(AUTOENCODERS[name], folder, subfolder)


def part_of(kind: Any, folder: str | Path, subfolder: str = "") -> Any:
    """Loads a part, of a class of diffusers or transformers, from a folder or hub id; networks in float32.

    If only weights of the variant "fp16" exist, they are loaded.
    """
    place, net, read = _place(folder), issubclass(kind, nn.Module), cast(Any, kind.from_pretrained)
    float32 = {"dtype" if kind is CLIPTextModel else "torch_dtype": torch.float32}
    errors: list[Exception] = []
    for options in (float32, float32 | {"variant": "fp16"}) if net else ({},):
        try:
            part = read(place, subfolder=subfolder, **options)
            break
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            errors.append(error)
    else:
        reason = " ".join(str(errors[0]).split())
        raise ValueError(f"{Path(place) / subfolder}: no {kind.__name__} could be loaded: {reason}") from errors[0]
    if isinstance(part, ModelMixin) and Path(place).exists():
        part.register_to_config(_name_or_path="")  # no local paths in saved configurations
    return part


def _place(folder: str | Path) -> str:
    """The path of a folder, or the hub id. Raises ValueError if it is a file, or neither a folder nor a hub id."""
    place = str(located(folder))
    if Path(place).is_file():
        raise ValueError(
            f"{folder} is a file; a folder in the diffusers layout is needed. Convert it with "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)."
        )
    if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") != 1):  # a hub id is owner/name
        raise ValueError(f"there is no folder {folder}.")
    return place
