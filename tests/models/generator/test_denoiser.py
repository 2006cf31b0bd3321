"""Noise prediction against its formulas, and whole runs that end in folders of diffusers."""

from typing import Any

import lightning as L
import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint import StableDiffusionControlNetInpaintPipeline
from torch import Tensor

from src.data.batch import Batch
from src.data.module import AdData
from src.data.showroom.world import Showroom
from src.diffusion.canny import outline
from src.diffusion.loading import load_generator
from src.fit import fit
from src.models.generator.denoiser import Denoiser
from src.models.generator.tuner import Tuner
from src.runtime.checkpoint import load
from tests.diffusion import tiny
from tests.models.resuming import resumed
from tests.models.stepping import QUIET, one_step


def denoiser(prediction: str = "epsilon", **change: Any) -> Denoiser:
    return Denoiser(tiny.generator(prediction=prediction), **{"trainable": "unet", **change})


def data() -> AdData:
    source = Showroom({"train": 8, "val": 2, "test": 2}, size=tiny.SIZE, holds=["image", "product", "prompt"])
    return AdData(source, batch_size=2, num_workers=0)


def configuration(out, **change):
    trainer = {"accelerator": "cpu", "max_steps": 6, "enable_progress_bar": False, "enable_model_summary": False}
    config = {"out": str(out), "seed": 0, "resume": False, "checkpoint_every": 2, "data": {}, "dtype": "float32"}
    node = {
        "_target_": "src.models.generator.denoiser.Denoiser",
        "trainable": "unet",
        "generator": {"_target_": "elsewhere"},
    }
    return config | {"model": node, "trainer": trainer | {"num_sanity_val_steps": 0, "log_every_n_steps": 1}} | change


def test_the_loss_is_the_mean_square_of_noise_or_v_with_min_snr_weights():
    clean, noise = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    t, prompts, edges = torch.tensor([20, 500, 980]), ["a", "b", "c"], outline(tiny.ads(3)["product"])
    for prediction in ("epsilon", "v_prediction"):
        plain = denoiser(prediction=prediction)
        a = plain.net.scheduler.alphas_cumprod[t][:, None, None, None]
        noisy = plain.net.scheduler.add_noise(clean, noise, t)
        predicted = plain(noisy, t, prompts, edges)
        true = plain.net.scheduler.get_velocity(clean, noise, t) if prediction == "v_prediction" else noise
        expected = (predicted - true).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(plain.loss(clean, noise, t, prompts, edges), expected, rtol=1e-4, atol=1e-6)
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=5) / (snr + 1 if prediction == "v_prediction" else snr)
        weighed = denoiser(prediction=prediction, min_snr=5.0).loss(clean, noise, t, prompts, edges)
        torch.testing.assert_close(weighed, expected * weight, rtol=1e-4, atol=1e-6)
        assert float(weight.min()) < 0.9 * float(weight.max())


def test_a_picture_is_encoded_once_for_each_side_it_is_seen_from():
    system = denoiser(kept_latents=3)
    images = torch.rand(2, 3, tiny.SIZE, tiny.SIZE)
    first = system.clean(["a", "b"], [False, True], images)
    torch.testing.assert_close(first[0], system.net.latents(images[:1])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(first[1], system.net.latents(images[1:].flip(-1))[0], atol=1e-5, rtol=0)
    assert set(system.kept) == {("a", False), ("b", True)}
    again = system.clean(["b", "a"], [True, False], torch.zeros_like(images))  # not looked at
    assert torch.equal(again, first.flip(0))
    assert not denoiser().kept


def asked(**shares: float) -> tuple[Denoiser, Batch, dict[str, Any]]:
    """A system, ads, and the clean latents, words and outlines of one training step on them."""
    found: dict[str, Any] = {}

    class Seen(Denoiser):
        def loss(self, clean: Tensor, noise: Tensor, t: Tensor, *rest: Any) -> Tensor:
            found.update(clean=clean)
            return super().loss(clean, noise, t, *rest)

    L.seed_everything(0, verbose=False)
    plain: Any = {"prompt_dropout": 0.0, "edge_dropout": 0.0, "flip": 0.0}
    system = Seen(tiny.generator(negative_prompt="blurry"), trainable="unet", **plain | shares)
    system.net.text_encoder.register_forward_pre_hook(lambda _, args: found.update(words=args[0]))
    system.net.controlnet.register_forward_pre_hook(
        lambda _, args, named: found.update(edges=named["controlnet_cond"]), with_kwargs=True
    )
    batch = tiny.ads(8) | {"image": torch.rand(8, 3, tiny.SIZE, tiny.SIZE)}
    one_step(system, batch)
    return system, batch, found


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_a_share_of_rows_is_turned_unprompted_or_without_outline(share, kinds):
    system, batch, found = asked(flip=share)
    edges, straight = outline(batch["product"]), system.net.latents(batch["image"])
    turned = [not torch.allclose(*pair, atol=1e-4) for pair in zip(found["clean"], straight, strict=True)]
    assert set(turned) == kinds
    mirrored = system.net.latents(batch["image"].flip(-1))
    for row, other in enumerate(turned):  # picture and outline alike
        torch.testing.assert_close(found["clean"][row], (mirrored if other else straight)[row], atol=1e-4, rtol=0)
        assert torch.equal(found["edges"][row], edges[row].flip(-1) if other else edges[row])

    system, batch, found = asked(prompt_dropout=share)
    long: Any = {"padding": "max_length", "max_length": tiny.WORDS, "return_tensors": "pt"}
    own, none = (system.net.tokenizer(prompts, **long).input_ids for prompts in (batch["prompt"], ["blurry"] * 8))
    silent = [torch.equal(*pair) for pair in zip(found["words"], none, strict=True)]
    assert set(silent) == kinds
    assert all(silent[row] or torch.equal(found["words"][row], own[row]) for row in range(8))

    _, batch, found = asked(edge_dropout=share)
    bare = [not row.any() for row in found["edges"]]
    assert set(bare) == kinds
    assert all(bare[row] or torch.equal(found["edges"][row], edges[row]) for row in range(8))


def test_a_step_draws_from_all_the_timesteps_of_the_schedule_alike():
    drawn: list[Tensor] = []

    class Seen(Denoiser):
        def loss(self, clean: Tensor, noise: Tensor, t: Tensor, prompts: list[str], edges: Tensor) -> Tensor:
            drawn.append(t)
            return super().loss(clean[:1], noise[:1], t[:1], prompts[:1], edges[:1])  # the others would cost seconds

    L.seed_everything(0, verbose=False)
    one_step(Seen(tiny.generator(), trainable="unet"), tiny.ads(10_000, 8) | {"image": torch.rand(10_000, 3, 8, 8)})
    (t,) = drawn
    assert (int(t.min()), int(t.max())) == (0, 999)  # either is missed once in 22 000 times
    counts = torch.histc(t.float(), bins=10, min=0, max=1000)
    assert 850 < counts.min() <= counts.max() < 1150  # 1000, give or take 30


def test_the_average_follows_the_weights_and_is_what_is_validated_and_shipped():
    system = denoiser(ema=0.5, lr=1e-2)
    raw, validated, back = {}, {}, {}

    def keep(there: dict[int, list[Tensor]], step: int) -> None:
        there[step] = [weight.detach().clone() for weight in system.trainable.weights().values()]

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            keep(back, trainer.global_step)

        def on_train_batch_end(self, trainer, *_):
            keep(raw, trainer.global_step)

        def on_validation_batch_start(self, trainer, *_):
            keep(validated, trainer.global_step)

        def on_train_end(self, trainer, *_):
            keep(back, trainer.global_step)

    start = [weight.detach().clone() for weight in system.trainable.weights().values()]
    watched: dict[str, Any] = {"max_steps": 6, "val_check_interval": 2, "limit_val_batches": 1, "callbacks": [Watch()]}
    L.Trainer(**QUIET | watched).fit(system, data())
    mean, means = start, {}
    for step in range(1, 7):
        decay = min(0.5, step / (9 + step))
        mean = means[step] = [torch.lerp(old, new, 1 - decay) for old, new in zip(mean, raw[step], strict=True)]
    keep(shipped := {}, 6)
    assert list(validated) == [2, 4, 6]
    for step, weights in [*validated.items(), *shipped.items()]:
        for weight, expected in zip(weights, means[step], strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)
    for step in (2, 4, 6):
        assert any(not torch.allclose(a, b) for a, b in zip(raw[step], means[step], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(raw[step], back[step], strict=True))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_low_precision_trained_weights_are_rejected(precision):
    with pytest.raises(ValueError, match=rf"trainer\.precision={precision}: trained weights must be float32"):
        one_step(denoiser(), next(iter(data().batches("train"))), precision=precision)


def train(out, trainable, resume=False):
    L.seed_everything(0, verbose=False)
    system = denoiser(trainable=trainable, rank=2, ema=0.9, lr=1e-2, shown=2, kept_latents=99)
    return fit(system, data(), configuration(out, resume=resume)), system


@pytest.mark.parametrize("trainable", ["unet", "unet_lora", "all"])
def test_a_run_ends_in_a_folder_that_diffusers_opens(trainable, tmp_path):
    metrics, system = train(tmp_path, trainable)
    folder = tmp_path / "checkpoint"
    assert set(metrics) == {"test/loss"}
    assert (tmp_path / "figures/samples.png").is_file()
    opened = StableDiffusionControlNetInpaintPipeline.from_pretrained(folder)
    now, before = dict(system.trainable.merged().named_parameters()), dict(tiny.generator().named_parameters())
    assert any(not torch.equal(now[name], before[name]) for name in before)
    for name, weight in opened.unet.named_parameters():
        assert torch.equal(weight, now[f"unet.{name}"])
    again = load(folder)
    assert isinstance(again, Tuner)
    batch = tiny.ads(1)
    painted = [net.sample(net.encode(batch)) for net in (again.net, system.net)]
    torch.testing.assert_close(painted[0], painted[1], atol=1e-5, rtol=0)
    assert again.net.settings == system.net.settings == load_generator(folder, **again.net.settings).settings
    apart = {"pytorch_lora_weights.safetensors", "kohya.safetensors"} if trainable == "unet_lora" else set()
    assert {file.name for file in folder.glob("adapters/*.safetensors")} == apart
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("trainable", ["controlnet", "controlnet_lora"])
def test_a_broken_run_resumes_to_the_weights_of_an_unbroken_one(trainable, tmp_path, monkeypatch):
    _, whole = train(tmp_path / "whole", trainable)
    _, system = resumed(Denoiser, lambda resume: train(tmp_path / "broken", trainable, resume=resume), monkeypatch)
    for a, b in zip(whole.net.parameters(), system.net.parameters(), strict=True):
        assert torch.equal(a, b)
    state = torch.load(tmp_path / "whole/last.ckpt", weights_only=True)["state_dict"]
    assert len(state) == 2 * len(
        denoiser(trainable=trainable, rank=2).trainable.weights()
    )  # and nothing that is frozen


def test_wrong_values_are_refused_by_name():
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"trainable": "vae"}, "trainable=vae"),
        ({"ema": 1.0}, r"ema=1\.0"),
        ({"prompt_dropout": 2.0}, r"prompt_dropout=2\.0 must be in"),
    ]
    for change, words in wrong:
        with pytest.raises(ValueError, match=words):
            denoiser(**change)
    state = denoiser(trainable="unet").state_dict()
    with pytest.raises(ValueError, match="another trainable part than controlnet"):
        denoiser(trainable="controlnet").load_state_dict(state)


def test_non_finite_losses_are_an_error_with_their_keys():
    (batch,) = data().batches("val")
    batch["image"][1, 0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match=rf"^losses: NaN or infinite for 1 of 2 images \({batch['key'][1]}\)"):
        denoiser().evaluation_step(batch, "val")
