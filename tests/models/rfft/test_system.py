"""RFFT: which weights get which gradient, what the reward sees, and what does not change the result."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from src.data.batch import Batch
from src.data.module import AdData
from src.data.showroom.world import Showroom
from src.diffusion.generator import Generator
from src.diffusion.loading import load_generator
from src.fit import fit
from src.models.rfft.evaluator import Evaluator
from src.models.rfft.regularizers import KL, ConsistentCondition, NoRegularizer, Regularizer
from src.models.rfft.reward_augmentation import RewardAugmentation
from src.models.rfft.steps import LastK, LateRandom, RandomTruncation, StepPolicy, Window
from src.models.rfft.system import RFFT
from src.models.rfnet.reward import RFNetReward
from src.rewards.base import Reward, Score
from src.rewards.mix import Mix
from tests.diffusion import tiny
from tests.models.generator.test_denoiser import configuration
from tests.models.resuming import resumed
from tests.models.stepping import QUIET, batches, one_step
from tests.rewards import tiny as nets

TUNED = ("unet", "controlnet", "unet_lora", "controlnet_lora")


class Redness(Reward):
    """How red a picture is; a real reward, only simple. Keeps what it was shown."""

    fields = frozenset({"title"})

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("goal", torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1))
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        self.shown = images
        if images.requires_grad:
            images.retain_grad()
        value = -(images - self.get_buffer("goal")).square().mean(dim=(1, 2, 3))
        return Score(value, {"redness": value})


def rfft(regularizer: Regularizer | None = None, steps: StepPolicy | None = None, **change: Any) -> RFFT:
    settings = {name: change.pop(name) for name in ("num_steps", "guidance_scale") if name in change}
    generator, reward = tiny.generator(**settings), change.pop("reward", None) or Redness()
    return RFFT(generator, reward, regularizer or NoRegularizer(), steps or LateRandom(1 / 3), **{"rank": 2, **change})


def ads(count: int = 2) -> Batch:
    return tiny.ads(count) | {"title": ["x"] * count}


def total(system: RFFT, batch: Batch, window: Window, seed: int = 0) -> Tensor:
    conditions = system.net.encode(batch, seed)
    with torch.no_grad():
        x = system.net.rollout(conditions, window.start)
    reward, penalty = system.losses(*system.window_score(x, window, conditions, batch, 0))
    return reward + system.regularizer.beta * penalty


def shaken(system: RFFT, by: float = 0.02) -> RFFT:
    """The system a little away from its reference."""
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in system.trainable.weights().values():
            weight.add_(by * torch.randn(weight.shape, generator=noise).to(weight))
    return system


def data() -> AdData:
    source = Showroom({"train": 8, "val": 2, "test": 2}, size=tiny.SIZE, holds=["product", "prompt", "title"])
    return AdData(source, batch_size=2, num_workers=0)


@pytest.mark.parametrize("trainable", TUNED)
@pytest.mark.parametrize(
    ("precision", "beta", "precise", "steps"),
    [
        ("32-true", 0.5, True, LateRandom(1 / 3)),
        ("bf16-mixed", 0.5, True, LateRandom(1 / 3)),
        ("bf16-mixed", 0.5, False, LateRandom(1 / 3)),
        ("bf16-mixed", 0.0, True, LateRandom(1 / 3)),
        ("bf16-mixed", 0.0, True, LateRandom(0.5, draws=2)),
        ("bf16-mixed", 0.0, True, LastK(2)),
    ],
)
def test_trained_weights_get_gradients_and_frozen_ones_do_not(trainable, precision, beta, precise, steps):
    system = shaken(
        rfft(
            ConsistentCondition(beta),
            steps,
            trainable=trainable,
            precise=precise,
            gradients_every=0,
            lr=1e-4,
            reward_augmentation=RewardAugmentation(1),
        )
    )
    trained = {name for name, weight in system.named_parameters() if weight.requires_grad}
    assert 0 < len(trained) < len(list(system.parameters()))
    gradients = one_step(system, ads(), precision=precision).gradients
    assert all(weight.dtype == torch.float32 for weight in system.net.parameters())
    assert gradients.keys() == trained
    assert not [name for name, gradient in gradients.items() if not float(gradient.abs().max())]


@pytest.mark.parametrize("trainable", ["controlnet", "unet_lora"])
@pytest.mark.parametrize("steps", [LateRandom(0.5, draws=2), LastK(2)], ids=lambda p: type(p).__name__)
def test_the_gradient_of_several_steps_under_bf16_is_that_of_float32(trainable, steps):
    """Rollouts in between, without gradient and on copies in bfloat16, hide none of it."""
    exact, near = {}, {}
    for precision, found in (("32-true", exact), ("bf16-mixed", near)):
        torch.manual_seed(0)  # of the adapters
        system = shaken(rfft(NoRegularizer(), steps, trainable=trainable, gradients_every=0))
        found |= one_step(system, ads(), precision=precision).gradients
    for name, gradient in exact.items():
        assert float(near[name].norm() / gradient.norm()) == pytest.approx(1, abs=0.2)
        assert float(torch.cosine_similarity(near[name].flatten(), gradient.flatten(), dim=0)) > 0.9


@pytest.mark.parametrize("trainable", ["unet", "controlnet_lora"])
@pytest.mark.parametrize(
    ("regularizer", "window"),
    [  # in a chain the reference is held, by design, so that its penalty has no such derivative
        (NoRegularizer(), Window(4, 5)),
        (KL(0.3), Window(4, 5)),
        (ConsistentCondition(0.2), Window(4, 5)),
        (NoRegularizer(), Window(3, 6)),
    ],
)
def test_the_gradient_of_the_whole_loss_is_that_of_finite_differences(trainable, regularizer, window):
    system = shaken(rfft(regularizer, trainable=trainable, guidance_scale=2.0), 0.1).double()
    batch = ads(1)
    batch["product"] = batch["product"].double()
    weights = list(system.trainable.weights().values())
    noise = torch.Generator().manual_seed(3)
    direction = [torch.randn(w.shape, generator=noise, dtype=torch.float64) for w in weights]
    size = sum(float(d.square().sum()) for d in direction) ** 0.5
    x = system.net.rollout(system.net.encode(batch), window.start).detach()  # held: the rollout has no gradient

    def loss() -> Tensor:
        conditions = system.net.encode(batch)
        reward, penalty = system.losses(*system.window_score(x, window, conditions, batch, 0))
        return reward + regularizer.beta * penalty

    slope = sum(float((g * d).sum()) for g, d in zip(torch.autograd.grad(loss(), weights), direction, strict=True))
    values, step = [], 1e-4 / size
    with torch.no_grad():
        for sign in (1, -2):
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(sign * step * d)
            values.append(float(loss()))
    assert slope / size == pytest.approx((values[0] - values[1]) / (2e-4), rel=1e-3, abs=1e-9)
    assert abs(slope) / size > 1e-8


@pytest.mark.parametrize("trainable", TUNED)
def test_at_the_reference_the_penalty_is_zero_and_away_from_it_not_and_the_reference_leaves_no_trace(trainable):
    for regularizer in (KL(1.0), ConsistentCondition(1.0), ConsistentCondition(1.0, "authors", "mean")):
        system, batch, window = rfft(regularizer, trainable=trainable), ads(), Window(4, 5)
        conditions = system.net.encode(batch)
        with torch.no_grad():
            x = system.net.rollout(conditions, 4)
        assert torch.equal(system.window_score(x, window, conditions, batch, 0)[1], torch.zeros(2))
        _, penalty = shaken(system).window_score(x, window, conditions, batch, 0)
        assert (penalty > 1e-9).all()
        copies = [weight for name, weight in system.named_parameters() if ".was." in name]
        assert bool(copies) == (not trainable.endswith("_lora"))


class Spy(Regularizer):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(2.0)
        self.asked: list[tuple[Any, Any, float, float]] = []

    def __call__(self, tuned: Any, reference: Any, a: float, s: float) -> Tensor:
        self.asked.append((tuned, reference, a, s))
        return torch.full((len(tuned[0]),), float(len(self.asked)))


@pytest.mark.parametrize("window", [Window(4, 5), Window(3, 6)])
def test_generator_and_reference_get_the_latents_of_the_rollout(window):
    spy = Spy()
    system, batch = shaken(rfft(spy, trainable="unet", guidance_scale=2.0)), ads()
    conditions = system.net.encode(batch)
    with torch.no_grad():
        x = system.net.rollout(conditions, window.start)
        known = system.net.noise(x, window.start, conditions)
        with system.trainable.reference():
            was = system.net.noise(x, window.start, conditions)
    score, penalty = system.window_score(x, window, conditions, batch, 0)
    steps = range(window.start, window.stop)
    assert [a for _, _, a, _ in spy.asked] == [system.net.alpha_bars[i] for i in steps]
    assert all(s == 2.0 for *_, s in spy.asked)
    tuned, reference = spy.asked[0][:2]
    for got, true in ((tuned, known), (reference, was)):
        for branch in (0, 1):
            torch.testing.assert_close(got[branch].detach(), true[branch])
    assert all(t.requires_grad for pair, _, _, _ in spy.asked for t in pair)
    assert not any(t.requires_grad for _, pair, _, _ in spy.asked for t in pair)
    assert penalty.tolist() == [(len(steps) + 1) / 2] * 2  # the mean over the window
    value, mean = system.losses(score, penalty)
    torch.testing.assert_close(value, -score.value.mean())
    assert float(mean) == (len(steps) + 1) / 2


class At(StepPolicy):
    """These very steps, each alone."""

    def __init__(self, *starts: int) -> None:
        self.starts = starts

    def __call__(self, num_steps: int, chance: torch.Generator | None = None) -> list[Window]:
        return [Window(start, start + 1) for start in self.starts]


def by_hand(system: RFFT, batch: Batch, *starts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean reward and mean CC (the paper's form) at these steps of a run's first rollout; gradients of -reward and CC.

    The reference is a generator of its own, before `shaken`.
    """
    net, was = system.net, tiny.generator()
    conditions = net.encode(batch, system.seed << 32)
    rewards, penalties = [], []
    for i in starts:
        with torch.no_grad():
            x = net.rollout(conditions, i)
            text0, uncond0 = was.noise(x, i, conditions)
        text, uncond = net.noise(x, i, conditions)
        a = net.alpha_bars[i]
        clean = (x - (1 - a) ** 0.5 * (uncond + 7.5 * (text - uncond))) / a**0.5
        moved = (text - uncond - text0 + uncond0) / (1 - a) ** 0.5
        rewards.append(system.reward(net.image(clean, conditions), batch).value)
        penalties.append(moved.flatten(1).norm(dim=1))
    reward, penalty = torch.cat(rewards).mean(), torch.cat(penalties).mean()
    weights = list(system.trainable.weights().values())
    pull, hold = (
        torch.cat([trainable.flatten() for trainable in torch.autograd.grad(term, weights, retain_graph=True)])
        for term in (-reward, penalty)
    )
    return reward.detach(), penalty.detach(), pull, hold


@pytest.mark.parametrize("trainable", ["controlnet", "unet_lora"])
@pytest.mark.parametrize(("beta", "starts"), [(0.01, [2]), (0.04, [2]), (0.04, [1, 3])])
def test_a_step_applies_the_gradient_of_minus_the_reward_and_beta_times_the_penalty(trainable, beta, starts):
    torch.manual_seed(0)  # of the adapters
    system, batch = shaken(rfft(ConsistentCondition(beta), At(*starts), trainable=trainable, seed=3)), ads()
    reward, penalty, pull, hold = by_hand(system, batch, *starts)
    step = one_step(system, batch)
    assert step.loss == pytest.approx(float(-reward + beta * penalty), rel=1e-5)
    gradient = torch.cat([trainable.flatten() for trainable in step.gradients.values()])
    assert float((gradient - pull - beta * hold).norm()) < 1e-3 * float(min(pull.norm(), beta * hold.norm()))


def test_evaluators_are_never_rewards_and_all_is_rejected():
    for file in Path("conf/reward").glob("*.yaml"):
        told = file.read_text(encoding="utf-8")
        assert "checkpoints/judge" not in told
        assert "checkpoints/reader" not in told
    with pytest.raises(ValueError, match="trainable=all: a reward tunes one of unet, controlnet"):
        rfft(trainable="all")


def test_without_a_regularizer_no_reference_is_asked(monkeypatch):
    system = rfft(NoRegularizer(), trainable="unet")
    monkeypatch.setattr(system.trainable, "reference", lambda: pytest.fail("a reference was asked"))
    total(system, ads(), Window(5, 6)).backward()


def test_the_reward_sees_the_pasted_product_without_gradient():
    system, batch = rfft(trainable="unet"), ads()
    total(system, batch, Window(4, 5)).backward()
    reward: Redness = system.reward  # type: ignore[assignment]
    inside = batch["product"][:, 3:].expand(-1, 3, -1, -1) > 0
    assert torch.equal(reward.shown[inside], batch["product"][:, :3][inside])
    conditions = system.net.encode(batch)
    latents = torch.randn(2, 4, 16, 16).requires_grad_()
    known = conditions.background == 0
    picture = system.net.image(latents, conditions)
    (gradient,) = torch.autograd.grad(picture[inside].sum(), latents, retain_graph=True)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    (gradient,) = torch.autograd.grad(picture.sum(), latents)
    assert torch.equal(gradient[known.expand_as(gradient)], torch.zeros(int(known.sum()) * 4))  # its latents neither
    assert float(gradient.abs().max()) > 0


def first_gradient(accumulate: int, seed: int = 0, processes: int = 1) -> Tensor:
    """The gradient of the first optimizer step on four rows."""
    gradients: list[Tensor] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append(torch.cat([w.grad.flatten() for w in pl_module.parameters() if w.grad is not None]))

    source = Showroom({"train": 8, "val": 2, "test": 2}, size=tiny.SIZE, holds=["product", "prompt", "title"])
    system = shaken(
        rfft(
            ConsistentCondition(0.3),
            LateRandom(0.5),
            trainable="unet",
            seed=seed,
            reward_augmentation=RewardAugmentation(1),
        )
    )
    L.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[Watch()], logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate, devices=processes, strategy="ddp" if processes > 1 else "auto",
    ).fit(system, AdData(source, batch_size=4 // accumulate // processes, num_workers=0))  # fmt: skip
    return gradients[0]


def test_a_step_depends_on_the_seed_but_not_on_the_batch_size():
    whole, parts, other = first_gradient(1), first_gradient(4), first_gradient(1, seed=1)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
    assert float((whole - other).norm() / whole.norm()) > 0.1


def test_a_step_has_one_seed_when_the_batches_of_an_epoch_do_not_fill_it():
    class Seeds(RFFT):
        seen: ClassVar[list[int]] = []

        def rollout_scores(self, batch: Batch, seed: int) -> list[tuple[Score, Tensor]]:
            self.seen.append(seed)
            return super().rollout_scores(batch, seed)

    source = Showroom({"train": 6}, size=tiny.SIZE, holds=["product", "prompt", "title"])
    system = Seeds(tiny.generator(), Redness(), NoRegularizer(), LateRandom(1 / 3), seed=1)
    L.Trainer(
        accelerator="cpu", max_steps=4, logger=False, limit_val_batches=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=2,
    ).fit(system, AdData(source, batch_size=2, num_workers=0))  # fmt: skip
    assert [seed - (1 << 32) for seed in system.seen] == [0, 0, 1, 2, 2, 3]


def test_rollouts_use_the_current_weights_under_bf16_with_clipping():
    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            own = next(system.net.controlnet.parameters()).detach().bfloat16()
            with system.trainable.low_precision():
                assert torch.equal(next(system.net.controlnet.parameters()), own)
            changes.append(float((own - start.bfloat16()).abs().max()))

    changes: list[float] = []
    system = rfft(trainable="controlnet", lr=0.1, gradients_every=0)
    start = next(system.net.controlnet.parameters()).detach().clone()
    L.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=2, gradient_clip_val=1.0, callbacks=[Watch()],
        logger=False, limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(system, data())  # fmt: skip
    assert 0.01 < changes[0] < changes[1]


def test_two_processes_step_as_one(tmp_path):
    """A real DDP run over gloo, this file being the program."""
    program = [sys.executable, "-m", "tests.models.rfft.test_system", str(tmp_path / "gradient.pt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    both, one = torch.load(tmp_path / "gradient.pt", weights_only=True), first_gradient(1)
    torch.testing.assert_close(both, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_gradient_accumulation_equals_a_large_batch():
    batch, window = ads(4), Window(4, 5)
    gradients = []
    for rows in ([range(4)], [range(i, i + 1) for i in range(4)]):
        system = shaken(rfft(ConsistentCondition(0.3), trainable="unet"))
        for few in rows:
            some = {k: v[few.start : few.stop] for k, v in batch.items()}
            (total(system, some, window) / len(rows)).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in system.trainable.weights().values()]))  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def saved_elements(system: RFFT, window: Window) -> int:
    """How many numbers the graph of one gradient step keeps, rollout included."""
    system.steps = lambda num_steps, chance: [window]  # type: ignore[assignment]
    count = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        system.rollout_scores(ads(1), 0)
    return count


def test_memory_does_not_grow_with_the_steps_of_the_rollout_and_shrinks_with_checkpointing():
    few, many = (saved_elements(rfft(trainable="unet", num_steps=n), Window(n - 1, n)) for n in (4, 16))
    assert few == many
    assert saved_elements(rfft(trainable="unet", checkpointing=True).train(), Window(5, 6)) < 0.7 * few
    assert saved_elements(rfft(trainable="unet"), Window(3, 6)) > 2 * few  # a chain's does


def test_checkpointing_leaves_the_gradient_as_it_is():
    gradients = []
    for checkpointing in (False, True):
        system = shaken(rfft(KL(0.1), trainable="controlnet", checkpointing=checkpointing)).train()
        total(system, ads(), Window(4, 5)).backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in system.trainable.weights().values()]))  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_options_of_the_loss():
    batch, window = ads(), Window(4, 5)
    both, text, off = (rfft(trainable="unet", guidance_gradient=way) for way in ("both", "text", "off"))
    values = [float(total(system, batch, window).detach()) for system in (both, text, off)]
    assert values[0] == values[1] != values[2]
    gradients = []
    for system in (both, text):
        total(system, batch, window).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in system.trainable.weights().values()]))  # type: ignore[union-attr]
    assert not torch.allclose(*gradients)
    score = Score(torch.tensor([-1.0, 0.5]), {})
    assert float(rfft(hinge=0.0).losses(score, torch.zeros(2))[0]) == 0.5  # mean of 1 and 0
    assert float(rfft().losses(score, torch.tensor([1.0, 3.0]))[0]) == 0.25
    assert float(rfft().losses(score, torch.tensor([1.0, 3.0]))[1]) == 2.0


@pytest.mark.parametrize("regularizer", [KL(1.0), NoRegularizer()], ids=lambda r: type(r).__name__)
def test_gradients_of_both_terms_are_logged_at_their_step(regularizer, tmp_path):
    system = shaken(
        rfft(
            regularizer, trainable="controlnet", gradients_every=1, gradients_batches=2,
            reward_augmentation=RewardAugmentation(2, shift=1),
        )
    )  # fmt: skip
    L.Trainer(
        accelerator="cpu", max_steps=3, logger=CSVLogger(tmp_path), log_every_n_steps=1, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=2,
    ).fit(system, data())  # fmt: skip
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("grad/reward_norm")]
    assert [row["step"] for row in rows] == ["1"]  # steps count from 0; the second, once
    assert float(rows[0]["grad/reward_norm"]) > 0
    if isinstance(regularizer, KL):
        assert float(rows[0]["grad/regularizer_norm"]) > 0
        assert -1 < float(rows[0]["grad/cosine"]) < 1
    else:
        assert "grad/cosine" not in rows[0]


def test_the_gradients_that_are_compared_are_means_over_batches_and_a_resumed_run_logs_complete_ones_only():
    """Two batches each: steps 1 and 3 of every 2 make the first mean, 5 and 7 the second."""
    logged: dict[int, dict[str, float]] = {}

    class Keep(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged[int(step or 0)] = metrics

    system = rfft(ConsistentCondition(1.0), gradients_every=2, gradients_batches=2)
    weight = next(iter(system.trainable.weights().values()))
    system._trainer = SimpleNamespace(loggers=[Keep("unused")])  # type: ignore[assignment]
    terms = {1: (1.0, 3.0), 3: (2.0, -1.0), 5: (1.0, 1.0), 7: (1.0, 1.0)}  # gradients (first, second weight)

    def compare(*steps: int) -> None:
        for step in steps:
            first, second = weight.flatten()[:2]
            a, b = terms[step]
            system.compare(a * first, b * first + second, step)

    compare(1)
    assert not logged
    compare(3)  # means 1.5 (1, 0) and (1, 1)
    assert logged == {3: {
        "grad/reward_norm": pytest.approx(1.5), "grad/regularizer_norm": pytest.approx(2**0.5),
        "grad/cosine": pytest.approx(2**-0.5),
    }}  # fmt: skip
    system.gradients, system.summed = [], 0  # killed between 1 and 3, resumed
    logged.clear()
    compare(3)
    assert not logged
    compare(5, 7)
    assert logged.keys() == {7}
    assert logged[7]["grad/reward_norm"] == pytest.approx(1.0)


def test_a_run_logs_reward_parts_penalty_and_gradients_and_shows_its_pictures(tmp_path):
    reward = Mix({"red": Redness()}, {"red": 2.0})
    system = shaken(rfft(ConsistentCondition(0.02), At(2), trainable="unet", reward=reward, gradients_every=1))
    system.gradients_batches = 1
    value, penalty, pull, hold = by_hand(system, ads(), 2)
    expected = {
        "train/reward": value,
        "train/reward_red/value": value / 2,
        "train/reward_red/redness": value / 2,
        "train/regularizer": penalty,
        "grad/reward_norm": pull.norm(),
        "grad/regularizer_norm": 0.02 * hold.norm(),
        "grad/cosine": pull @ hold / pull.norm() / hold.norm(),
    }
    logger = TensorBoardLogger(tmp_path, name="", version="logs")
    options: dict[str, Any] = {"logger": logger, "log_every_n_steps": 1, "max_steps": 1, "default_root_dir": tmp_path}
    L.Trainer(**QUIET | options).fit(system, batches(ads()), batches(ads()))
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    for tag, true in expected.items():
        (logged,) = events.Scalars(tag)
        assert (logged.step, logged.value) == (0, pytest.approx(float(true), rel=1e-3))
    assert {"val/reward", "val/dissimilarity"} < {*events.Tags()["scalars"]}
    (shown,) = events.Images("val/images")
    assert (shown.step, shown.width, shown.height) == (1, 2 * tiny.SIZE, tiny.SIZE)


def test_the_loss_is_the_mean_over_the_views():
    batch, window = ads(), Window(4, 5)
    plain = rfft(trainable="unet", reward_augmentation=RewardAugmentation(0))
    still = rfft(trainable="unet", reward_augmentation=RewardAugmentation(3, shift=0, blur=0, noise=0))
    torch.testing.assert_close(total(still, batch, window), total(plain, batch, window))
    moved = rfft(trainable="unet", reward_augmentation=RewardAugmentation(3, shift=2, blur=1, noise=0.2))
    assert not torch.allclose(total(moved, batch, window), total(plain, batch, window))


def train(
    out, resume: bool = False, steps: StepPolicy | None = None, regularizer: Regularizer | None = None,
    precision: str = "32-true", nonfinite: str = "stop", **change: Any,
):  # fmt: skip
    L.seed_everything(0, verbose=False)
    system = rfft(
        regularizer or ConsistentCondition(0.1),
        steps or LateRandom(1 / 3, 2),
        **{"lr": 5e-3, "ema": 0.8, "reward_augmentation": RewardAugmentation(1, 2, 0.5, 0.01)} | change,
    )
    node = {"_target_": "src.models.rfft.system.RFFT", "generator": {}}
    config = configuration(out, model=node, resume=resume, nonfinite=nonfinite)
    config["trainer"]["precision"] = precision
    return fit(system, data(), config), system


class Broken(Redness):
    """The value of one image is `bad` in the second training step."""

    def __init__(self, bad: float) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def score(self, images: Tensor, batch: Batch) -> Score:
        score = super().score(images, batch)
        self.calls += torch.is_grad_enabled()
        row = torch.arange(len(images)) == (1 if torch.is_grad_enabled() and self.calls == 3 else -1)
        return Score(torch.where(row, self.bad, score.value), score.parts)


@pytest.mark.parametrize(("bad", "hinge"), [(torch.nan, None), (torch.inf, 0.0)])
def test_a_non_finite_reward_stops_the_run_or_is_skipped_and_counted(bad, hinge, tmp_path):
    with pytest.raises(
        ValueError, match=r"step 1: the loss is NaN or infinite \(images train-\d+, train-\d+\); no weight"
    ):
        train(tmp_path / "a", reward=Broken(bad), hinge=hinge)
    state = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    with pytest.warns(UserWarning, match="step 1: the loss is NaN or infinite"):
        train(tmp_path / "b", reward=Broken(bad), hinge=hinge, nonfinite="skip")
    assert "of which 1 were skipped" in (tmp_path / "b" / "checkpoint" / "README.md").read_text()


def redness(generator: Generator) -> float:
    return float(Redness()(generator.sample(generator.encode(ads(4))), ads(4)).value.mean())


@pytest.mark.parametrize(
    ("trainable", "regularizer"),
    [
        ("unet", NoRegularizer()),
        ("controlnet", KL(0.01)),
        ("unet_lora", ConsistentCondition(0.01, "authors", "mean")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_run_raises_the_reward_and_ends_in_a_folder_of_diffusers(trainable, regularizer, tmp_path):
    metrics, after = train(
        tmp_path, trainable=trainable, regularizer=regularizer, lr=0.02 if trainable == "unet_lora" else 0.01
    )
    opened = load_generator(tmp_path / "checkpoint", **after.net.settings)
    assert redness(opened) > redness(tiny.generator()) + 2e-5
    assert (tmp_path / "figures" / "before_after.png").is_file()
    with (tmp_path / "figures" / "measures.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    for name in ("reward", "before_reward", "dissimilarity"):
        assert sum(float(row[name]) for row in rows) / len(rows) == pytest.approx(metrics[f"test/{name}"], rel=1e-5)
    assert list((tmp_path / "figures").glob("step-*.png"))
    StableDiffusionControlNetInpaintPipeline.from_pretrained(tmp_path / "checkpoint")


@pytest.mark.parametrize("trainable", ["unet", "unet_lora"])
def test_the_test_measures_the_generator_that_is_saved_and_beside_it_the_one_that_it_was(trainable, tmp_path):
    config = configuration(tmp_path, model={"_target_": "src.models.rfft.system.RFFT", "generator": {}})
    config["trainer"] |= {"limit_val_batches": 0, "max_steps": 2}
    torch.manual_seed(0)  # of the adapters
    system = rfft(trainable=trainable, lr=0.02)
    metrics = fit(system, data(), config)

    def reward(generator: Generator) -> float:
        """Of two tries from the evaluator's first seed on, at the two test products."""
        (batch,) = data().batches("test")
        tries = [generator.sample(generator.encode(batch, (1 << 62) + number)) for number in (0, 1)]
        return float(torch.cat([Redness()(images, batch).value for images in tries]).mean())

    saved = load_generator(tmp_path / "checkpoint", **system.net.settings)
    assert metrics["test/before_reward"] == pytest.approx(reward(tiny.generator()), rel=1e-5)
    assert metrics["test/reward"] == pytest.approx(reward(saved), rel=1e-5)
    assert abs(metrics["test/reward"] - metrics["test/before_reward"]) > 1e-4


def test_a_measure_that_a_product_lacks_counts_for_those_that_have_it():
    class Followed(Evaluator):
        told: ClassVar = {"a0": 1.0, "a3": 0.5}

        def forward(self, generator, batch, reward=None):
            values = torch.tensor([self.told.get(key, float("nan")) for key in batch["key"]])
            return {"attribute_accuracy": values}, torch.zeros(2, len(values), 3, 8, 8)

    batches = [ads(2) | {"key": [f"a{2 * n}", f"a{2 * n + 1}"]} for n in range(3)]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)

    def loader(batches):
        return torch.utils.data.DataLoader(batches, batch_size=None)

    (found,) = trainer.test(rfft(evaluator=Followed()), loader(batches), verbose=False)
    assert found["test/attribute_accuracy"] == 0.75
    (found,) = trainer.test(rfft(evaluator=Followed()), loader(batches[2:]), verbose=False)
    assert found["test/attribute_accuracy"] != found["test/attribute_accuracy"]  # nobody has it: no number


def test_a_run_without_a_test_ends_in_its_folder_too(tmp_path):
    system = rfft(lr=1e-3)
    config = configuration(tmp_path, model={"_target_": "src.models.rfft.system.RFFT", "generator": {}})
    config["trainer"] |= {"limit_test_batches": 0, "max_steps": 1}
    assert not [name for name in fit(system, data(), config) if name.startswith("test")]
    load_generator(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"init=x: the initial weights of a generator are those of generator\.folder"):
        fit(system, data(), config | {"init": "x", "out": str(tmp_path / "other")})


@pytest.mark.parametrize(("trainable", "precision"), [("controlnet", "bf16-mixed"), ("unet_lora", "32-true")])
def test_a_broken_run_resumes_to_the_weights_of_an_unbroken_one(trainable, precision, tmp_path, monkeypatch):
    def run(name: str, resume: bool) -> Any:
        steps = LateRandom(2 / 3, 2)  # of 6 steps it draws two of four
        return train(tmp_path / name, trainable=trainable, resume=resume, precision=precision, steps=steps)

    _, whole = run("whole", False)
    _, system = resumed(RFFT, lambda resume: run("broken", resume), monkeypatch)
    for a, b in zip(whole.net.parameters(), system.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("steps", [LastK(2), RandomTruncation(0.5)], ids=lambda p: type(p).__name__)
def test_other_step_policies_increase_the_reward(steps, tmp_path):
    """The reward rises by more than weight decay or chance move it."""
    _, system = train(tmp_path, steps=steps, trainable="unet", lr=0.01)
    assert redness(system.net) > redness(tiny.generator()) + 2e-5


def test_rfnet_tunes_too_with_the_maps_of_the_painted_picture(tmp_path):
    reward = RFNetReward(**nets.rfnet(tmp_path))
    system = rfft(ConsistentCondition(0.1), trainable="controlnet", reward=reward)
    batch = ads() | {"depth": torch.zeros(2, 1, 64, 64), "image": torch.zeros(2, 3, 64, 64)}
    total(system, batch, Window(4, 5)).backward()
    assert all(weight.grad is not None for weight in system.trainable.weights().values())
    with pytest.raises(ValueError, match="reads depth, saliency of the batch, not of the image"):
        rfft(reward=RFNetReward(**nets.rfnet(tmp_path / "other"), maps="batch"))
    with pytest.raises(ValueError, match="guidance_gradient=none: choose one of both, text, off"):
        rfft(guidance_gradient="none")


@pytest.mark.parametrize("trainable", ["unet", "controlnet_lora"])
@pytest.mark.parametrize("regularizer", [KL(1.0), ConsistentCondition(1.0)])
def test_penalty_near_the_reference_is_equal_in_bf16_and_float32(trainable, regularizer):
    batch, window = ads(2), Window(4, 5)

    def penalty(precise: bool | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)  # of the adapters
        system = shaken(rfft(regularizer, trainable=trainable, precise=bool(precise)), 1e-3)
        if precise is not None:
            system.trainable.cast_frozen_to_bf16(system.precise)
        conditions = system.net.encode(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=precise is not None, cache_enabled=False):
            _, found = system.window_score(conditions.noise, window, conditions, batch, 0)
        found.sum().backward()
        return found.detach(), torch.cat(
            [w.grad.flatten() for w in system.trainable.weights().values() if w.grad is not None]
        )

    (exact, gradient), (near, close), (_, far) = penalty(None), penalty(True), penalty(False)
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0)
    assert float(torch.cosine_similarity(close, gradient, dim=0)) > 0.95
    assert float(torch.cosine_similarity(far, gradient, dim=0)) < 0.9, "rounding does no harm here: no need for it"


if __name__ == "__main__":
    gradient = first_gradient(1, processes=2)
    if torch.distributed.get_rank() == 0:
        torch.save(gradient, sys.argv[1])
