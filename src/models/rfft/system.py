"""RFFT: tunes a generator with the gradient of any reward at late denoising steps, regularized towards its reference.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418, and
related methods by settings: ReFL (guidance_gradient=off, hinge), DRaFT-K and AlignProp (steps).
"""

from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from src.data.batch import Batch
from src.diffusion.generator import Conditions, Generator
from src.diffusion.noise import seeded_generator
from src.metrics.gradients import cosine, flat_gradient
from src.models.generator.trainable import TRAINABLE
from src.models.rfft.evaluated_tuner import EvaluatedTuner
from src.models.rfft.evaluator import Evaluator
from src.models.rfft.regularizers import Regularizer
from src.models.rfft.reward_augmentation import RewardAugmentation
from src.models.rfft.steps import StepPolicy, Window
from src.rewards.base import Reward, Score

GUIDANCE_GRADIENTS = ("both", "text", "off")


class RFFT(EvaluatedTuner):
    """Reward fine-tuning: F_total = -mean(value) + beta * regularizer, of images that the generator makes.

    A rollout without gradient leads to a late step; there the noise is predicted once more with gradient, the image
    estimated (x0-hat), decoded, the product pasted, and scored by the reward. Regularizer and reference get the same
    latents: the rollout's own, after the inpainting blend. (The article forms x0-hat from x_{t+1} and writes CC and KL
    at x_t: here one latent, that of x0-hat, and one forward pass serve all.)

    Args:
        evaluator: measures the images generated for validation and test products.
        reward_augmentation: of the images that the reward scores in training.
        trainable: "controlnet" (the paper's), "unet", "unet_lora" or "controlnet_lora".
        guidance_gradient: through "both" branches of the guided noise, through the "text" one alone, or "off": no
            guidance in the step with gradient, as ReFL has it.
        hinge: the loss of an image is max(0, hinge - value) (ReFL's shape), so that good images have no gradient; None:
            -value.
        precise: with a regularizer, predict the noise in the step with gradient in float32 under bf16-mixed too: the
            small distance of a generator from its reference is less than the rounding of bfloat16. On a GPU float32 is
            TF32 unless torch is told otherwise.
        checkpointing: compute activations of the step with gradient twice instead of keeping them.
        gradients_every: optimizer steps between two batches whose gradients of the reward and of the regularizer
            (after beta) are computed separately, by two more backward passes; 0: never. Of a step that accumulates
            batches it is the first, in the first process.
        gradients_batches: after so many of these batches the norms of both mean gradients and the cosine between them
            are logged. Single batches have a cosine near 0: their gradients are mostly noise.
        seed: of the rollouts' noise, the steps drawn and the augmentation: they depend on it, the optimizer's step
            and the image's key alone: on no batch size, accumulation or process.
        rank, ema, lr, weight_decay, warmup, schedule: see `Tuner`.
    """

    about: ClassVar = {
        "use": "Generating backgrounds around products, like the generator that it was tuned from.",
        "limits": "Tuned for one reward, which it may exploit: judge it by its images and the held-out evaluators.",
        "load": "from src.diffusion.generator import load_generator\n\n"
        'generator = load_generator("path/of/this/folder")  # in diffusers: controlnet_conditioning_scale=1.0',
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
            raise ValueError(f"{type(reward).__name__} takes {', '.join(sorted(own))} from the batch, not the image.")
        self.regularizer, self.steps, self.reward_augmentation = (
            regularizer,
            steps,
            reward_augmentation or RewardAugmentation(),
        )
        self.guidance_gradient, self.hinge = guidance_gradient, hinge
        self.precise = precise and regularizer.beta > 0
        self.gradients_every, self.gradients_batches = gradients_every, gradients_batches
        self.gradients: list[Tensor] = []  # sums over batches, on the CPU
        self.summed = 0  # batches in them
        self.seed, self.begun = seed, -1
        self.fields = frozenset({"prompt", "product"} | reward.fields | self.evaluator.fields)
        self.trainable.keep_reference()
        if checkpointing:
            for net in (generator.unet, generator.controlnet, generator.vae):
                net.enable_gradient_checkpointing()

    @property
    def card(self) -> dict[str, str]:
        reward, regularizer = type(self.reward).__name__, type(self.regularizer).__name__
        tuned = f"{self.net.origin or 'A generator'}, its {self.trainable.name} tuned by RFFT"
        what = f"{tuned}: the reward is {reward}, regularized by "
        return super().card | {"what": f"{what}{regularizer} with beta {self.regularizer.beta:g}."}

    def training_step(self, batch: Batch) -> Tensor:
        step = self.trainer.global_step
        first, self.begun = step != self.begun, step  # the first of the batches accumulated in a step
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
        """Adds the gradients of both terms to their sums; after `gradients_batches` logs norms and cosine of the means.

        Which steps are summed depends on the step alone. Sums are not saved: a run that is resumed while they are
        incomplete logs the next complete ones.
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
                found["grad/cosine"] = cosine(*self.gradients)
            for logger in self.loggers:
                logger.log_metrics(found, step)

    def rollout_scores(self, batch: Batch, seed: int) -> list[tuple[Score, Tensor]]:
        """The reward and the penalty, (batch,), in every window of one rollout from noise of (seed, key)."""
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
        """The reward of the image that a window of steps from latents x estimates, and the penalty, (batch,)."""
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
        views = self.reward_augmentation(self.net.picture(clean, conditions), fields, chances)
        return self.reward(*views), penalty / (window.stop - window.start)

    def noise(self, x: Tensor, i: int, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """(text, uncond) with gradient, as far as guidance and regularizer need it: without guidance both are text."""
        if self.guidance_gradient == "both" or self.regularizer.beta:
            return self.net.noise(x, i, conditions)
        text = self.net.noise_of("text", x, i, conditions)
        if self.guidance_gradient == "off":
            return text, text
        with torch.no_grad():
            return text, self.net.noise_of("uncond", x.detach(), i, conditions)

    def losses(self, score: Score, penalty: Tensor) -> tuple[Tensor, Tensor]:
        """F_AC, or its shaped form, and the mean penalty."""
        loss = -score.value if self.hinge is None else (self.hinge - score.value).clamp_min(0)
        return loss.mean(), penalty.mean()
