"""What a tuned generator's states and card say of what it was tuned from."""

import shutil

import lightning as L
import pytest
import torch

from src.diffusion.loading import load_generator
from src.models.rfft.regularizers import ConsistentCondition
from src.models.rfft.steps import LateRandom
from src.models.rfft.system import RFFT
from src.runtime.card import card
from tests.diffusion import tiny
from tests.models.rfft.test_system import Redness, data


def tune(folder, out, trainable="controlnet", resume=False):
    torch.manual_seed(len(str(out)))  # fresh adapters begin otherwise in every process
    generator = load_generator(folder, num_steps=4)
    system = RFFT(generator, Redness(), ConsistentCondition(0.5), LateRandom(0.5), trainable=trainable, rank=2, lr=1e-3)
    trainer = L.Trainer(
        max_steps=2 if resume else 1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(system, data(), ckpt_path=out if resume else None, weights_only=True)
    trainer.save_checkpoint(out)
    return system


@pytest.mark.parametrize("trainable", ["controlnet", "unet_lora"])
def test_a_state_is_not_gone_on_with_on_a_folder_of_other_weights(trainable, tmp_path):
    folder, state = tmp_path / "generator", tmp_path / "state.ckpt"
    tiny.generator().save(folder)
    tune(folder, state, trainable)
    tune(folder, state, trainable, resume=True)
    shutil.rmtree(folder)
    tiny.generator(seed=1).save(folder)
    with pytest.raises(ValueError, match="the weights of the generator have changed since the state was saved"):
        tune(folder, state, trainable, resume=True)


def test_the_card_names_generator_reward_and_regularizer_and_the_generators_licence(tmp_path):
    folder = tmp_path / "majic"
    tiny.generator().save(folder)
    system = RFFT(load_generator(folder), Redness(), ConsistentCondition(0.5), LateRandom(0.5))
    told = system.card
    tuned = "majic with controlnet tuned by RFFT"
    assert told["what"] == f"{tuned}: reward Redness, regularizer ConsistentCondition (beta 0.5)."
    assert told["licence"] == "Other: that of majic, from whose weights these were trained."
    about = {"title": "t", "data": "d", "command": "c", "time": "t", "machine": "m", **told}
    assert card(system, {}, about, "float32").startswith("---\nlibrary_name: pytorch\nlicense: other\n---\n")
    assert "licence" not in RFFT(tiny.generator(), Redness(), ConsistentCondition(0.5), LateRandom(0.5)).card


def saved(guidance_gradient, regularizer=None):
    """Elements that the graph of a loss keeps."""
    system = RFFT(
        tiny.generator(), Redness(), regularizer or ConsistentCondition(0.0), LateRandom(0.5),
        guidance_gradient=guidance_gradient,
    )  # fmt: skip
    count = 0

    def keep(tensor):
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        system.rollout_scores({**tiny.ads(2), "title": ["a", "b"]}, 0)
    return count


def test_a_branch_without_gradient_keeps_no_activations():
    both, text, off = (saved(name) for name in ("both", "text", "off"))
    assert text < 0.8 * both
    assert off <= text
    assert saved("text", ConsistentCondition(1.0)) > text  # which asks for both
