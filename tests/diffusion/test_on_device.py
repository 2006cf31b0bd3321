"""Mistakes that only cost time on a GPU, found on a CPU."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from src.diffusion.generator import Conditions
from src.models.generator.trainable import Trainable
from tests.diffusion import tiny


class NoTransfer(TorchFunctionMode):
    """Refuses what makes the CPU wait for a GPU and does not fail on the meta device: copies to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        moved = func in (Tensor.to, Tensor.copy_) and args[0].device != made.device
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) or moved:
            raise AssertionError(f"{getattr(func, '__name__', func)} copies from the CPU")
        return made


def on_meta(conditions: Conditions) -> Conditions:
    return replace(
        conditions, **{field.name: getattr(conditions, field.name).to("meta") for field in fields(conditions)}
    )


@pytest.mark.parametrize(("prediction", "from_noise"), [("epsilon", False), ("v_prediction", True)])
def test_the_cpu_never_waits_in_a_rollout(prediction: str, from_noise: bool) -> None:
    """Tensors on the meta device have no values: reading one, or computing with one of the CPU, is an error."""
    generator = tiny.generator(prediction=prediction, from_noise=from_noise)
    conditions = on_meta(generator.encode(tiny.ads(2)))
    generator.to("meta")
    with torch.no_grad(), NoTransfer():
        images = generator.sample(conditions)
    assert images.shape == (2, 3, tiny.SIZE, tiny.SIZE)
    with pytest.raises(AssertionError, match="copies from the CPU"), NoTransfer():
        torch.tensor(1, device="meta")


@pytest.mark.parametrize(("trainable", "off"), [("controlnet", True), ("unet_lora", False)])
def test_networks_in_bfloat16_run_without_autocast(trainable: str, off: bool) -> None:
    """On a GPU, autocast would compute their norms in float32; float32 adapters in a bfloat16 network need it."""
    tuned = Trainable(tiny.generator(), trainable)
    tuned.cast_frozen_to_bf16()
    seen: dict[str, bool] = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False), tuned.low_precision():
        for name in ("unet", "controlnet", "vae"):
            for layer in getattr(tuned.generator, name).modules():
                if isinstance(layer, torch.nn.GroupNorm):
                    layer.register_forward_hook(
                        lambda *_, name=name: seen.update({name: torch.is_autocast_enabled("cpu")})
                    )

        def steer(x: Tensor, eps: Tensor, i: int) -> Tensor:
            seen["steer"] = torch.is_autocast_enabled("cpu")
            return eps

        images = tuned.generator.sample(tuned.generator.encode(tiny.ads(2)), steer)
    assert seen == {"unet": not off, "controlnet": not off, "vae": False, "steer": True}
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_a_float32_generator_follows_autocast() -> None:
    generator, seen = tiny.generator(), []
    generator.unet.conv_in.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        generator.sample(generator.encode(tiny.ads(1)))
    assert set(seen) == {torch.bfloat16}
