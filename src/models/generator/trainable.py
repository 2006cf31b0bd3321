"""The trainable part of a generator, and the generator before training as a reference."""

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
from src.diffusion.lora import save_kohya

TRAINABLE = ("unet", "controlnet", "unet_lora", "controlnet_lora", "all")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # layers with LoRA


class Trainable(nn.Module):
    """A generator with one trainable part; all other weights are frozen, and everything is in eval mode.

    Args:
        name: "unet", "controlnet", "unet_lora", "controlnet_lora" (LoRA of the attention layers by PEFT), or "all":
            text encoder, UNet and ControlNet.
        rank: LoRA rank.
    """

    def __init__(self, generator: Generator, name: str, rank: int = 8) -> None:
        super().__init__()
        if name not in TRAINABLE:
            raise ValueError(f"trainable={name}: choose one of {', '.join(TRAINABLE)}.")
        if not generator.control_scale and name.startswith("controlnet"):
            raise ValueError(f"trainable={name} needs the ControlNet, but generator.control_scale=0 disables it.")
        self.generator, self.name = generator.requires_grad_(False).eval(), name
        self.lora = name.endswith("_lora")
        self.names = ("text_encoder", "unet", "controlnet") if name == "all" else (name.removesuffix("_lora"),)
        for module in self.modules_trained():
            if self.lora:
                config = LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION, init_lora_weights="gaussian")
                inject_adapter_in_model(config, module)
            else:
                module.requires_grad_(True)
        self.float32: dict[str, Tensor] = {}  # frozen weights before `cast_frozen_to_bf16`
        self.copied: tuple[str, ...] = ()  # networks that stay float32 after it
        self.copies: dict[str, Any] = {}  # bfloat16 copies of these, made by the first `low_precision`

    def modules_trained(self) -> list[Any]:
        return [getattr(self.generator, name) for name in self.names]

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained weights, by name."""
        return {name: weight for name, weight in self.generator.named_parameters() if weight.requires_grad}

    def keep_reference(self) -> None:
        """Copies the trained networks for `reference`; LoRA needs no copy, as adapters can be disabled."""
        copies = [] if self.lora else [deepcopy(module).requires_grad_(False) for module in self.modules_trained()]
        self.was = nn.ModuleList(copies)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Replaces the generator by the one that `keep_reference` copied."""
        self._adapters(False)
        try:
            with self._replaced({} if self.lora else dict(zip(self.names, self.was, strict=True))):
                yield
        finally:
            self._adapters(True)

    def cast_frozen_to_bf16(self, precise: bool = False) -> None:
        """Casts frozen weights to bfloat16 until `restore_float32`; autocast would cast float32 weights in every call.

        `precise`: UNet and ControlNet stay float32, for a gradient step in float32, and `low_precision` uses copies.
        """
        self.copied = ("unet", "controlnet") if precise else () if self.lora else self.names
        for name, weight in self.generator.named_parameters():
            if not weight.requires_grad and weight.dtype == torch.float32 and name.partition(".")[0] not in self.copied:
                self.float32[name] = weight.data.cpu()
                weight.data = weight.data.bfloat16()

    def restore_float32(self) -> None:
        """Reverts `cast_frozen_to_bf16` exactly."""
        for name, weight in self.generator.named_parameters():
            if name in self.float32:
                weight.data = self.float32[name].to(weight.device)
        self.float32, self.copied, self.copies = {}, (), {}

    @contextmanager
    def low_precision(self) -> Iterator[None]:
        """For calls without gradient: after `cast_frozen_to_bf16` the whole generator runs in bfloat16.

        Networks with trained weights are copied every time, because fused optimizers do not signal changes; the cost is
        small compared with a rollout.
        """
        for name in self.copied:
            net = getattr(self.generator, name)
            if name not in self.copies:
                self.copies[name] = deepcopy(net).bfloat16()
            elif name in self.names:
                for old, new in zip(self.copies[name].parameters(), net.parameters(), strict=True):
                    old.data.copy_(new.data)
        with self._replaced(self.copies):
            yield

    def merged(self, dtype: torch.dtype = torch.float32) -> Generator:
        """The generator in `dtype` with merged adapters. Networks that this does not change are shared, not copied."""
        nets = dict(self.generator.named_children())
        kept = [net for name, net in nets.items() if not (self.lora and name in self.names) and net.dtype == dtype]
        plain = deepcopy(self.generator, {id(net): net for net in kept})
        for module in [getattr(plain, name) for name in self.names if self.lora]:
            for name, layer in list(module.named_modules()):
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
                    module.set_submodule(name, layer.get_base_layer())
        return plain.to(dtype)

    def save_adapters(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the adapters as kohya.safetensors; those of the UNet also for `load_lora_weights` of diffusers."""
        if not self.lora:
            raise ValueError(f"trainable={self.name} has no adapters.")
        part, net = self.names[0], self.modules_trained()[0]
        weights = {name: weight.detach().to(dtype) for name, weight in get_peft_model_state_dict(net).items()}
        if part == "unet":
            StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=dict(weights))
        folder.mkdir(parents=True, exist_ok=True)
        save_kohya(weights, part, folder / "kohya.safetensors")

    @contextmanager
    def _replaced(self, nets: Mapping[str, Any]) -> Iterator[None]:
        own = {name: getattr(self.generator, name) for name in nets}
        try:
            for name, net in nets.items():
                setattr(self.generator, name, net)
            yield
        finally:
            for name, net in own.items():
                setattr(self.generator, name, net)

    def _adapters(self, enabled: bool) -> None:
        for net in [*self.modules_trained(), *self.copies.values()] if self.lora else ():
            for layer in net.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.enable_adapters(enabled)
