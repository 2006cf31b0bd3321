"""Base class of systems that train a generator: trainable part, moving average, checkpoint folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.diffusion.generator import Generator
from src.models.generator.trainable import Trainable
from src.runtime.checkpoint import fingerprint, licence_of
from src.runtime.system import System

LOAD = """from src.diffusion.loading import load_generator

generator = load_generator("path/of/this/folder")  # in diffusers: controlnet_conditioning_scale=1.0"""


class Tuner(System):
    """A system that trains one part of a generator. Its checkpoint folder has the diffusers layout, adapters merged.

    Training states contain the trained weights only; all others are loaded from the generator's folder.

    Args:
        trainable, rank: see `Trainable`; lr, weight_decay, warmup, schedule: see `src.runtime.schedules.adamw`.
        ema: decay of an exponential moving average of the trained weights, which is validated, tested and saved; None:
            no average.
    """

    own_layout = True
    precise = False  # compute the gradient step in float32 under bf16-mixed
    about: Mapping[str, str] = {}  # texts of the model card

    def __init__(
        self,
        generator: Generator,
        trainable: str,
        rank: int,
        ema: float | None,
        lr: float,
        weight_decay: float,
        warmup: float,
        schedule: str,
    ) -> None:
        super().__init__()
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema={ema} must be above 0 and below 1, or null.")
        self.trainable, self.ema, self.base = Trainable(generator, trainable, rank), ema, {}
        averaged = self.trainable.weights().values() if ema else ()
        self.average = nn.ParameterList(nn.Parameter(w.detach().clone(), requires_grad=False) for w in averaged)
        self.lr, self.weight_decay, self.warmup, self.schedule = lr, weight_decay, warmup, schedule

    @property
    def net(self) -> Generator:
        return self.trainable.generator

    @property
    def card(self) -> dict[str, str]:
        """Texts of the model card; the license is that of the initial weights."""
        return {**self.about, "load": LOAD} | ({"licence": licence_of(self.net.origin)} if self.net.origin else {})

    def base_hashes(self) -> dict[str, str]:
        """Hashes of the networks that a state depends on but does not contain; of the generator without adapters."""
        return {"generator": fingerprint(self.net, self.trainable.weights() if self.trainable.lora else ())}

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.base = self.base_hashes()  # before a state is loaded, and before the first step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["base"] = self.base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError if the weights of the generator or the reward have changed since the state was saved."""
        known = checkpoint.get("base", {})
        if changed := [name for name, now in self.base.items() if known.get(name, now) != now]:
            raise ValueError(f"the weights of the {' and the '.join(changed)} have changed since the state was saved.")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema:  # not diffusers' EMAModel: its first decay is 0, and it is not a module, so not part of a state
            step = self.trainer.global_step
            decay = min(self.ema, (1 + step) / (10 + step))  # smaller at first, to forget the initial weights
            with torch.no_grad():
                for mean, weight in zip(self.average, self.trainable.weights().values(), strict=True):
                    mean.lerp_(weight, 1 - decay)

    def on_validation_start(self) -> None:
        self._swap()

    def on_validation_end(self) -> None:
        self._swap()

    def on_fit_start(self) -> None:
        """Raises ValueError for a precision in which the trained weights would not be float32."""
        if (precision := self.trainer.precision) in ("16-true", "bf16-true"):
            raise ValueError(f"trainer.precision={precision}: trained weights must be float32; use bf16-mixed.")
        if self.trainer.precision == "bf16-mixed":
            self.trainable.cast_frozen_to_bf16(self.precise)

    def on_fit_end(self) -> None:
        """From here on the weights are the average, if there is one."""
        self._swap()
        self.trainable.restore_float32()

    def on_test_start(self) -> None:
        if self.trainer.precision == "bf16-mixed":
            self.trainable.cast_frozen_to_bf16()

    def on_test_end(self) -> None:
        self.trainable.restore_float32()

    def _swap(self) -> None:
        """Exchanges the trained weights and their average."""
        for weight, mean in zip(self.trainable.weights().values() if self.ema else (), self.average, strict=True):
            weight.data, mean.data = mean.data, weight.data

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trained weights and their average."""
        trained = {f"trainable.generator.{name}" for name in self.trainable.weights()}
        whole = super().state_dict(*args, **kwargs)
        return {key: value for key, value in whole.items() if key in trained or key.startswith("average.")}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if odd := sorted(state_dict.keys() ^ self.state_dict().keys()):
            raise ValueError(
                f"the state belongs to another trainable part than {self.trainable.name}: {', '.join(odd[:3])} ..."
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the folder of a diffusers ControlNet inpainting pipeline, adapters merged.

        Adapters are also saved in adapters/, for the original generator.
        """
        self.trainable.merged(dtype).save(folder)
        if self.trainable.lora:
            self.trainable.save_adapters(folder / "adapters", dtype)

    def assets(self, folder: Path) -> dict[str, Any]:
        """The generator of the folder with its settings."""
        loader: dict[str, Any] = {"_target_": "src.diffusion.loading.load_generator", "folder": "./"}
        return {"generator": loader | self.net.settings}


def squared(difference: Tensor) -> Tensor:
    """The mean square of each row, (batch,)."""
    return difference.square().flatten(1).mean(dim=1)
