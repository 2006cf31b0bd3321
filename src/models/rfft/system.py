"""RFFT: fine-tunes a generator with the gradient of any reward at late denoising steps.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418. Other
settings give related methods: ReFL (guidance_gradient=off, hinge), DRaFT-K and AlignProp (steps).
"""

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from src.data.batch import Batch
from src.diffusion.generator import Conditions, Generator
from src.diffusion.noise import seeded_generator
from src.metrics.gradients import flat_gradient
from src.models.generator.trainable import TRAINABLE
from src.models.rfft.evaluated_tuner import EvaluatedTuner
from src.models.rfft.evaluator import Evaluator
from src.models.rfft.regularizers import Regularizer
from src.models.rfft.reward_augmentation import RewardAugmentation
from src.models.rfft.steps import StepPolicy, Window
from src.rewards.base import Reward, Score
from src.runtime.card import without_folders

GUIDANCE_GRADIENTS = ("both", "text", "off")


class RFFT(EvaluatedTuner):
    """Reward fine-tuning: F_total = -mean(value) + beta * regularizer of generated images.

    A rollout without gradient leads to a late step. There the noise is predicted once more with gradient, the clean
    image is estimated (x0-hat) and decoded, the product is pasted, and the reward scores the image. The reference
    predicts the noise for the same latents, after the inpainting blend. (The paper computes x0-hat from x_{t+1}, and CC
    and KL at x_t; here all of them use the same latents and one forward pass.)

    Args:
        evaluator: measures the images generated for validation and test products.
        reward_augmentation: augmentation of the images that the reward scores in training.
        trainable: "controlnet" (as in the paper), "unet", "unet_lora" or "controlnet_lora".
        guidance_gradient: the gradient flows through "both" branches of the guidance or the "text" branch only; "off":
            no guidance in the gradient step, as in ReFL.
        hinge: the loss of an image is max(0, hinge - value) as in ReFL, so that good images have no gradient; None:
            -value.
        precise: with a regularizer, run the gradient step in float32 under bf16-mixed, because the difference between
            generator and reference is below the resolution of bfloat16. TF32 on GPUs is enough.
        checkpointing: activation checkpointing in the gradient step.
        gradients_every: optimizer steps between two batches for which the gradients of the reward and of beta *
            regularizer are computed separately (two more backward passes); 0: never. With gradient accumulation it is
            the first batch of a step.
        gradients_batches: the norms of both gradients and their cosine are logged for means over this many batches,
            because gradients of single batches are mostly noise, with a cosine near 0.
        seed: seed of noise, steps and augmentation, which depend on seed, optimizer step and key only, not on batch
            size, accumulation or number of processes.
        rank, ema, lr, weight_decay, warmup, schedule: see `Tuner`.
    """

    about: ClassVar = {
        "use": "Generating backgrounds around products, like the generator it was tuned from.",
        "limits": "Tuned for one reward, which it may exploit: inspect its images and the held-out evaluators.",
    }

    def __init__(
        self,
        generator: Generator,
        reward: Reward,
        regularizer: Regularizer,
        steps: StepPolicy,
        evaluator: Evaluator | None = None,
        reward_augmentation: RewardAugmentation | None = None,
        trainable: str = "controlnet",
        rank: int = 8,
        guidance_gradient: str = "both",
        hinge: float | None = None,
        precise: bool = True,
        checkpointing: bool = False,
        gradients_every: int = 5,
        gradients_batches: int = 16,
        seed: int = 0,
        ema: float | None = None,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.0,
        schedule: str = "constant",
    ) -> None:
        super().__init__(
            generator, evaluator or Evaluator(), reward, trainable, rank, ema, lr, weight_decay, warmup, schedule
        )
        self.save_hyperparameters(
            ignore=["generator", "reward", "regularizer", "steps", "evaluator", "reward_augmentation"]
        )
        if trainable == "all":
            raise ValueError(f"trainable=all: a reward tunes one of {', '.join(p for p in TRAINABLE if p != 'all')}.")
        if guidance_gradient not in GUIDANCE_GRADIENTS:
            raise ValueError(f"guidance_gradient={guidance_gradient}: choose one of {', '.join(GUIDANCE_GRADIENTS)}.")
        if own := reward.fields & {"depth", "saliency", "image"}:
            raise ValueError(f"{type(reward).__name__} reads {', '.join(sorted(own))} of the batch, not of the image.")
        self.regularizer, self.steps = regularizer, steps
        self.reward_augmentation = reward_augmentation or RewardAugmentation()
        self.guidance_gradient, self.hinge = guidance_gradient, hinge
        self.precise = precise and regularizer.beta > 0
        self.gradients_every, self.gradients_batches = gradients_every, gradients_batches
        self.gradients: list[Tensor] = []  # sums over `summed` batches, on the CPU
        self.summed, self.seed, self.begun = 0, seed, -1
        self.fields = frozenset({"prompt", "product"} | reward.fields | self.evaluator.fields)
        self.trainable.keep_reference()
        if checkpointing:
            for net in (generator.unet, generator.controlnet, generator.vae):
                net.enable_gradient_checkpointing()

    @property
    def card(self) -> dict[str, str]:
        reward, regularizer = type(self.reward).__name__, type(self.regularizer).__name__
        tuned = f"{without_folders(self.net.origin) or 'A generator'} with {self.trainable.name} tuned by RFFT"
        regularized = f"regularizer {regularizer} (beta {self.regularizer.beta:g})"
        return super().card | {"what": f"{tuned}: reward {reward}, {regularized}."}

    def training_step(self, batch: Batch) -> Tensor:
        step = self.trainer.global_step
        first, self.begun = step != self.begun, step  # whether it is the first batch accumulated in this step
        scores, size = self.rollout_scores(batch, (self.seed << 32) + step), len(batch["key"])
        reward, penalty = (
            torch.stack(term).mean() for term in zip(*[self.losses(*pair) for pair in scores], strict=True)
        )
        values = torch.cat([score.value for score, _ in scores])
        parts = {name: torch.cat([score.parts[name] for score, _ in scores]).mean() for name in scores[0][0].parts}
        self.log("train/reward", values.mean(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/reward_{name}": value for name, value in parts.items()}, batch_size=size)
        self.log("train/regularizer", penalty, prog_bar=True, batch_size=size)
        if self.gradients_every and first and (step + 1) % self.gradients_every == 0:
            self.compare(reward, self.regularizer.beta * penalty, step)
        return reward + self.regularizer.beta * penalty

    def compare(self, reward: Tensor, penalty: Tensor, step: int) -> None:
        """Sums the gradients of both terms; after `gradients_batches`, logs norms and cosine of the means.

        Sums are not saved: a run that is resumed in the middle of a sum starts with the next one.
        """
        if ((step + 1) // self.gradients_every - 1) % self.gradients_batches == 0:
            self.gradients, self.summed = [], 0
        weights = [*self.trainable.weights().values()]
        new = [flat_gradient(term, weights).cpu() for term in (reward, penalty)[: 1 + bool(self.regularizer.beta)]]
        self.gradients = [a + b for a, b in zip(self.gradients, new, strict=True)] if self.summed else new
        self.summed += 1
        if self.summed == self.gradients_batches:
            names = ("grad/reward_norm", "grad/regularizer_norm")
            found = {name: float(g.norm()) / self.summed for name, g in zip(names, self.gradients, strict=False)}
            if self.regularizer.beta:
                found["grad/cosine"] = float(torch.cosine_similarity(*self.gradients, dim=0))
            for logger in self.loggers:
                logger.log_metrics(found, step)

    def rollout_scores(self, batch: Batch, seed: int) -> list[tuple[Score, Tensor]]:
        """The score and the penalty (batch,) of every window of one rollout, whose noise depends on (seed, key)."""
        conditions = self.net.encode(batch, seed)
        x, at, found = conditions.noise, 0, []
        for window in self.steps(self.net.num_steps, seeded_generator(seed, "steps")):
            with torch.no_grad(), self.trainable.low_precision():
                x = self.net.rollout(conditions, window.start, at, x)
            at = window.start
            found.append(self.window_score(x, window, conditions, batch, seed))
        return found

    def window_score(
        self, x: Tensor, window: Window, conditions: Conditions, batch: Batch, seed: int
    ) -> tuple[Score, Tensor]:
        """The score of the image estimated after a window of steps from latents x, and the penalty (batch,)."""
        penalty, clean = x.new_zeros(len(x)), x
        for i in range(window.start, window.stop):
            with torch.autocast(x.device.type, enabled=False) if self.precise else nullcontext():
                text, uncond = tuned = self.noise(x, i, conditions)
                if self.regularizer.beta:
                    with torch.no_grad(), self.trainable.reference():
                        reference = self.net.noise(x, i, conditions)
                    a = self.net.alpha_bars[i]
                    penalty = penalty + self.regularizer(tuned, reference, a, self.net.guidance_scale).to(penalty)
            if self.guidance_gradient == "off":
                eps = text
            else:
                eps = self.net.guide(text, uncond if self.guidance_gradient == "both" else uncond.detach())
            clean = self.net.estimate(x, eps, i)
            if i + 1 < window.stop:
                x = self.net.step(x, eps, i, conditions)
        fields: dict[str, Any] = {field: batch[field] for field in self.reward.fields}
        chances = [seeded_generator(seed, f"{key} view {window.start}") for key in batch["key"]]
        views = self.reward_augmentation(self.net.image(clean, conditions), fields, chances)
        return self.reward(*views), penalty / (window.stop - window.start)

    def noise(self, x: Tensor, i: int, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(text, uncond) with the gradients that guidance and regularizer need; without guidance, both are text."""
        if self.guidance_gradient == "both" or self.regularizer.beta:
            return self.net.noise(x, i, conditions)
        text = self.net.noise_of("text", x, i, conditions)
        if self.guidance_gradient == "off":
            return text, text
        with torch.no_grad():
            return text, self.net.noise_of("uncond", x.detach(), i, conditions)

    def losses(self, score: Score, penalty: Tensor) -> tuple[Tensor, Tensor]:
        """F_AC, or the hinge loss, and the mean penalty."""
        loss = -score.value if self.hinge is None else (self.hinge - score.value).clamp_min(0)
        loss = loss.where(score.value.isfinite(), torch.nan)  # a hinge would hide an infinite value
        return loss.mean(), penalty.mean()
