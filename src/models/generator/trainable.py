"""The trainable of a generator that is trained, and the generator as it was before."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from src.diffusion.generator import Generator

TRAINABLE = ("unet", "controlnet", "unet_lora", "controlnet_lora", "all")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # LoRA's usual places


class Trainable(nn.Module):
    """A generator of which one trainable is trained; the weights of every other are frozen, and all is in eval mode.

    Args:
        name: "unet", "controlnet", their "_lora" forms (low-rank adapters of the attention, by PEFT), or "all": text
            encoder, UNet and ControlNet.
        rank: of the adapters.
    """

    def __init__(self, generator: Generator, name: str, rank: int = 8) -> None:
        super().__init__()
        if name not in TRAINABLE:
            raise ValueError(f"trainable={name}: choose one of {', '.join(TRAINABLE)}.")
        if not generator.control_scale and name.startswith("controlnet"):
            raise ValueError(
                f"trainable={name} needs a ControlNet that is asked: generator.control_scale=0 leaves it out."
            )
        self.generator, self.name = generator.requires_grad_(False).eval(), name
        self.lora = name.endswith("_lora")
        self.names = ("text_encoder", "unet", "controlnet") if name == "all" else (name.removesuffix("_lora"),)
        for module in self.modules_trained():
            if self.lora:
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION, init_lora_weights="gaussian")
                inject_adapter_in_model(config, module)
            else:
                module.requires_grad_(True)
        self.float32: dict[str, Tensor] = {}  # by `cast_frozen_to_bf16`: the frozen weights before,
        self.copied: tuple[str, ...] = ()  # the networks that stay float32,
        self.copies: dict[str, Any] = {}  # and their bfloat16 copies, from the first `low_precision` on

    def modules_trained(self) -> list[Any]:
        return [getattr(self.generator, name) for name in self.names]

    def weights(self) -> dict[str, nn.Parameter]:
        """Those that are trained, by name."""
        return {name: weight for name, weight in self.generator.named_parameters() if weight.requires_grad}

    def keep_reference(self) -> None:
        """Remembers the generator as it is now, for `reference`; adapters need no copy: they can be turned off."""
        copies = [] if self.lora else [deepcopy(module).requires_grad_(False) for module in self.modules_trained()]
        self.was = nn.ModuleList(copies)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the generator is the one that `keep_reference` remembered."""
        now = {name: getattr(self.generator, name) for name in self.names}
        if self.lora:
            self._adapters(False)
        else:
            self._set(dict(zip(self.names, self.was, strict=True)))
        try:
            yield
        finally:
            if self.lora:
                self._adapters(True)
            else:
                self._set(now)

    def cast_frozen_to_bf16(self, precise: bool = False) -> None:
        """Keeps the frozen weights in bfloat16 until `restore_float32`: autocast would cast float32 ones at every call.

        `precise`: UNet and ControlNet stay float32, for a step in float32; only `low_precision` has them in bfloat16.
        """
        self.copied = ("unet", "controlnet") if precise else () if self.lora else self.names
        for name, weight in self.generator.named_parameters():
            if not weight.requires_grad and weight.dtype == torch.float32 and name.partition(".")[0] not in self.copied:
                self.float32[name] = weight.data.cpu()
                weight.data = weight.data.bfloat16()

    def restore_float32(self) -> None:
        """Undoes `cast_frozen_to_bf16`, to the bit."""
        weights = dict(self.generator.named_parameters())
        for name, wide in self.float32.items():
            weights[name].data = wide.to(weights[name].device)
        self.float32, self.copied, self.copies = {}, (), {}

    @contextmanager
    def low_precision(self) -> Iterator[None]:
        """For calls without gradient: after `cast_frozen_to_bf16` the whole generator runs in bfloat16 here.

        Networks with trained weights are copied each time, which is cheap compared with a rollout; fused optimizers
        do not signal changes.
        """
        now = {name: getattr(self.generator, name) for name in self.copied}
        for name, net in now.items():
            if name not in self.copies:
                self.copies[name] = deepcopy(net).bfloat16()
            elif name in self.names:
                for old, new in zip(self.copies[name].parameters(), net.parameters(), strict=True):
                    old.data.copy_(new.data)
        self._set(self.copies)
        try:
            yield
        finally:
            self._set(now)

    def merged(self, dtype: torch.dtype = torch.float32) -> Generator:
        """The generator in `dtype`, its adapters added to the weights beside them: plain nets again.

        Nets that this does not change are the same objects: a copy of all would double the memory at a training's end.
        """
        nets = dict(self.generator.named_children())
        kept = [net for name, net in nets.items() if not (self.lora and name in self.names) and net.dtype == dtype]
        plain = deepcopy(self.generator, {id(net): net for net in kept})
        for module in [getattr(plain, name) for name in self.names if self.lora]:
            for name, layer in list(module.named_modules()):
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
                    above, _, own = name.rpartition(".")
                    setattr(module.get_submodule(above), own, layer.get_base_layer())
        return plain.to(dtype)

    def save_adapters(self, folder: str | Path, dtype: torch.dtype) -> None:
        """Writes the UNet's adapters alone, for `load_lora_weights` of diffusers' pipelines."""
        if self.name != "unet_lora":
            raise ValueError(f"trainable={self.name}: diffusers' pipelines take adapters of the UNet only.")
        weights = get_peft_model_state_dict(self.generator.unet)
        StableDiffusionLoraLoaderMixin.save_lora_weights(
            folder, unet_lora_layers={name: weight.detach().to(dtype) for name, weight in weights.items()}
        )

    def _set(self, nets: Mapping[str, Any]) -> None:
        for name, net in nets.items():
            setattr(self.generator, name, net)

    def _adapters(self, enabled: bool) -> None:
        for net in [*self.modules_trained(), *self.copies.values()]:
            for layer in net.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.enable_adapters(enabled)
