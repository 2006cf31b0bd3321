"""What only a GPU can show. Skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from omegaconf import OmegaConf

from src.build import build
from src.config import compose
from src.data.batch import Batch, collate, to_float
from src.data.showroom.world import Showroom
from src.diffusion.loading import load_generator
from src.fit import run
from src.models.rfnet.reward import RFNetReward
from tests.diffusion import tiny as painters
from tests.rewards import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def ads(num: int = 16) -> Batch:
    pictures = Showroom({"test": num}, size=64).split("test")
    return to_float(collate([pictures[index] for index in range(num)]))


def test_rfnet_trains_is_tested_and_shipped_in_bfloat16(tmp_path: Path) -> None:
    nets = tiny.rfnet(tmp_path)
    words = [
        "model=rfnet",
        "trainer=gpu",
        f"data.transforms.perceived={{depth: {nets['depth']}, saliency: {nets['saliency']}}}",
    ]
    words += ["data.source.num={train: 64, val: 16, test: 16}", "data.source.cache=null", "data.batch_size=16"]
    words += [
        "data.shares.perceived=0.5",
        "trainer.max_steps=4",
        "trainer.enable_progress_bar=false",
        f"out={tmp_path / 'run'}",
    ]
    config: Any = OmegaConf.to_container(compose("fit", words), resolve=True)
    metrics = run(config)
    assert torch.tensor(list(metrics.values())).isfinite().all()
    assert torch.cuda.get_device_name() in (tmp_path / "run/checkpoint/README.md").read_text()


def test_every_weight_of_the_shipped_net_gets_a_gradient_in_bfloat16_after_a_forward_without_one() -> None:
    system = build(compose("fit", ["model=rfnet"]).model).cuda().train()
    batch = move_data_to_device(ads(), "cuda")
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        with torch.no_grad():
            system.net(batch)
        loss = torch.nn.functional.cross_entropy(system.net(batch), batch["label"])
    loss.backward()
    idle = [name for name, w in system.net.named_parameters() if w.grad is None or not w.grad.abs().sum() > 0]
    assert [name for name in idle if not name.endswith("key.bias")] == []  # softmax takes a key's bias away again


def test_the_reward_and_its_gradient_are_those_of_the_cpu(tmp_path: Path) -> None:
    reward, batch, found = RFNetReward(**tiny.rfnet(tmp_path)), ads(), {}
    for device in ("cpu", "cuda"):
        there = move_data_to_device(batch, device)
        images = there["image"].clone().requires_grad_()
        value = reward.to(device)(images, there).value
        (gradient,) = torch.autograd.grad(value.sum(), images)
        found[device] = value.detach().cpu(), gradient.cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("trainable", ["unet", "controlnet", "unet_lora"])
def test_a_reward_tunes_the_generator_in_bfloat16_and_its_folder_paints(trainable: str, tmp_path: Path) -> None:
    painters.generator().save(tmp_path / "generator")
    nets = tiny.rfnet(tmp_path)
    words = [
        "model=rfft", "trainer=gpu", "evaluator=none",
        f"model.trainable={trainable}", f"generator.folder={tmp_path / 'generator'}",
        "generator.num_steps=4", "steps.draws=1", *(f"reward.{name}={place}" for name, place in nets.items()),
        "data.source.size=64", "data.source.num={train: 16, val: 4, test: 4}", "data.source.cache=null",
        "data.batch_size=4", "trainer.max_steps=3", "trainer.enable_progress_bar=false", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    metrics = run(OmegaConf.to_container(compose("fit", words), resolve=True))  # type: ignore[arg-type]
    assert torch.tensor(list(metrics.values())).isfinite().all()
    tuned = load_generator(tmp_path / "run/checkpoint", num_steps=4)
    batch, found = painters.ads(2), []
    for device in ("cpu", "cuda"):
        painter = tuned.to(device)
        found.append(painter.sample(painter.encode(move_data_to_device(batch, device))).cpu())
    torch.testing.assert_close(found[1], found[0], atol=0.02, rtol=0)
