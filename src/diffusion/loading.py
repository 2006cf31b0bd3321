"""Loading generators, and parts of them, from folders and hub ids in the diffusers layout, or from single files."""

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
from src.diffusion.clip_tokenizer import VOCABULARY, clip_tokenizer
from src.diffusion.generator import SETTINGS, Generator
from src.diffusion.lora import merge_lora
from src.diffusion.parts import check_schedule
from src.diffusion.residual_autoencoder import ResidualAutoencoder
from src.diffusion.single_file import SingleFile
from src.diffusion.stable_diffusion import SCHEDULE
from src.runtime.checkpoint import CONFIG, located, model_config

AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, ResidualAutoencoder)}
PREDICTIONS = ("epsilon", "v_prediction")
LISTED = 12  # files named in an error


@loadable
def load_generator(
    folder: str | Path,
    controlnet: str | Path | ControlNetModel | None = None,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
    trained_size: int | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    **settings: Any,
) -> Generator:
    """Loads a generator in float32 from a folder or hub id in the diffusers layout, or from a single file.

    Settings that are missing or None come from the `config.yaml` of a local folder, or are `Generator`'s defaults.
    Betas and prediction type come from the folder's scheduler, whatever its class; sampling is DDIM without clipping,
    with leading timesteps, or trailing ones with rescale_betas_zero_snr (Lin et al. 2024, arXiv 2305.08891).

    Args:
        folder: with tokenizer, text encoder, VAE, UNet and scheduler; or a file of a Stable Diffusion 1.x or 2.x.
        controlnet: a ControlNet, or a folder, hub id or file, which is used only if `folder` has none of its own.
        tokenizer: folder of a CLIP tokenizer; None: that of the folder, or for a file that of OpenAI's CLIP.
        prediction: of a file: "epsilon" or "v_prediction"; None: epsilon, which Stable Diffusion 1.x predicts.
        trained_size: of a file: side in px of its training images; None: 512, or 768 for 2.x with v_prediction.
        lora, lora_scale: file, folder or hub id of a LoRA, and its strength, see `merge_lora`.
        settings: see `Generator`.

    Raises ValueError naming the folder or file and the part that is missing or cannot be read, and parts that do not
    fit.
    """
    if located(folder).is_file():
        parts = _file_parts(located(folder), tokenizer, prediction, trained_size)
    elif prediction or trained_size:
        raise ValueError(f"prediction and trained_size are for single files; {folder} says them itself.")
    else:
        own = not isinstance(controlnet, ControlNetModel) and (not controlnet or has_controlnet(folder))
        parts = _folder_parts(folder, tokenizer) | {
            "controlnet": own and part_of(ControlNetModel, folder, "controlnet")
        }
    ddim, noise = cast(Any, DDIMScheduler), cast(Any, parts.pop("noise"))
    spacing = "trailing" if noise["rescale_betas_zero_snr"] else "leading"
    if isinstance(controlnet, ControlNetModel):
        parts["controlnet"] = controlnet
    elif not parts["controlnet"]:
        parts["controlnet"] = controlnet_at(controlnet or folder)
    known = model_config(folder).get("generator", {}) if (located(folder) / CONFIG).is_file() else {}
    known = {name: value for name, value in known.items() if name in SETTINGS}
    generator = Generator(
        scheduler=ddim.from_config(noise, timestep_spacing=spacing, clip_sample=False, thresholding=False),
        **parts,
        **known | {name: value for name, value in settings.items() if value is not None},
    )
    generator.origin = str(folder)
    if lora:
        merge_lora(generator, lora, lora_scale)
    return generator


def _folder_parts(folder: str | Path, tokenizer: str | Path | None) -> dict[str, Any]:
    noise = part_of(DDIMScheduler, folder, "scheduler").config
    config: Any = cast(Any, DDIMScheduler).load_config(str(located(folder)), subfolder="scheduler")
    check_schedule(config, f"{folder}/scheduler")
    return {
        "noise": noise,
        "tokenizer": tokenizer_at(tokenizer) if tokenizer else part_of(CLIPTokenizer, folder, "tokenizer"),
        "text_encoder": part_of(CLIPTextModel, folder, "text_encoder"),
        "vae": autoencoder_of(folder, "vae"),
        "unet": part_of(UNet2DConditionModel, folder, "unet"),
    }


def _file_parts(file: Path, tokenizer: str | Path | None, prediction: str | None, size: int | None) -> dict[str, Any]:
    source = SingleFile(file)
    source.check_whole()
    if prediction is None and source.second and "v_pred" not in source.state:
        raise ValueError(
            f"{file} is a Stable Diffusion 2.x, and does not say what it predicts: give generator.prediction=epsilon "
            "(2.x base, 512 px) or generator.prediction=v_prediction (768 px)."
        )
    prediction = prediction or PREDICTIONS["v_pred" in source.state]
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction}: choose from {', '.join(PREDICTIONS)}.")
    size = size or (768 if source.second and prediction == "v_prediction" else 512)
    text_encoder, vae = source.text_encoder(), source.vae(size)
    words = text_encoder.config.vocab_size
    if not tokenizer and words != VOCABULARY:
        raise ValueError(
            f"{file}: its text encoder has {words} tokens, not the {VOCABULARY} of CLIP; give its tokenizer's folder, "
            "generator.tokenizer=DIR."
        )
    noise = cast(Any, DDIMScheduler)(
        **SCHEDULE, prediction_type=prediction, rescale_betas_zero_snr="ztsnr" in source.state
    )
    return {
        "noise": noise.config,
        "controlnet": source.controlnet() if source.part("controlnet") else None,
        "tokenizer": tokenizer_at(tokenizer) if tokenizer else clip_tokenizer(source.second),
        "text_encoder": text_encoder,
        "vae": vae,
        "unet": source.unet(size // 2 ** (len(vae.config["block_out_channels"]) - 1)),
    }


def controlnet_at(place: str | Path) -> Any:
    """The ControlNet of a folder, hub id or file."""
    return SingleFile(located(place)).controlnet() if located(place).is_file() else part_of(ControlNetModel, place)


def unet_of(place: str | Path) -> Any:
    """The UNet of a generator in a folder, hub id or file."""
    if located(place).is_file():
        return SingleFile(located(place)).unet(sample_size=64)
    return part_of(UNet2DConditionModel, place, "unet")


def tokenizer_at(folder: str | Path) -> Any:
    """The CLIP tokenizer in a folder, or in its subfolder tokenizer/."""
    return part_of(CLIPTokenizer, folder, "tokenizer" if (located(folder) / "tokenizer").is_dir() else "")


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

    If only weights of the variant "fp16" exist, they are loaded. Pickled weights (.bin) are read as plain tensors only.
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
        told, has = f"{Path(place) / subfolder}: no {kind.__name__} could be loaded", _contents(Path(place), subfolder)
        raise ValueError(f"{told}{has}: {reason}") from errors[0]
    if isinstance(part, ModelMixin) and Path(place).exists():
        part.register_to_config(_name_or_path="")  # no local paths in saved configurations
    return part


def _contents(folder: Path, subfolder: str) -> str:
    """What lies in a local folder, for an error."""
    if not folder.is_dir():
        return ""
    here = folder / subfolder if (folder / subfolder).is_dir() else folder
    names = sorted(path.name for path in here.iterdir())
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f" ({here} has {', '.join(names[:LISTED]) or 'no files'}{more})"


def _place(folder: str | Path) -> str:
    """The path of a folder, or the hub id. Raises ValueError if it is a file, or neither a folder nor a hub id."""
    place = str(located(folder))
    if Path(place).is_file():
        raise ValueError(f"{folder} is a file; a folder in the diffusers layout is needed.")
    if not Path(place).exists() and (place.startswith((".", "/")) or place.count("/") != 1):  # a hub id is owner/name
        raise ValueError(f"there is no folder {folder}.")
    return place
