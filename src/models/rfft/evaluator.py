"""Held-out evaluators, never used as rewards: an availability judge and an attribute reader.

Generated images have no ground truth, and the reward that a generator was tuned with is biased.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.metrics.diversity import between_prompt_diversity, within_prompt_dissimilarity, within_prompt_diversity
from src.rewards.base import Reward
from src.runtime.finite import require_finite


@runtime_checkable
class Reader(Protocol):
    """A frozen network that classifies attributes of images, such as `src.models.attributes.system.AttributeReader`."""

    net: Any  # net.features(images): (batch, features)

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    def followed(self, images: Tensor, batch: Batch, /) -> dict[str, Tensor]:
        """1 where an image shows what its prompt names, 0 where not, -100 where it names nothing; (batch,) each."""
        ...


class Evaluator(nn.Module):
    """Measures of the images that a generator makes for a batch, each (batch,): means over `tries` images per product.

    availability: share with p(available) >= `threshold` according to the judge. attribute_accuracy: share of the
    `attributes` named in the prompt that the reader recognizes. diversity: `within_prompt_diversity` in the reader's
    features, between_prompts: `between_prompt_diversity` in them, over the products of the batch; dissimilarity:
    `within_prompt_dissimilarity` of the images themselves. Images depend on (seed, key) alone.

    A measure is NaN only where it is undefined: attribute_accuracy if the prompt names no attribute, between_prompts in
    a batch of one.

    Args:
        judge: a reward whose value is log p(available), of checkpoints that no reward uses; None: not measured.
        reader: None: neither attributes nor diversity in its features are measured.
        attributes: those of the reader's that are measured, as it may recognize some better than others; None: all.
        tries: images per product, at least 2.
        threshold: of the judge's p(available).
        seed: of the first image of a product; larger than all seeds used in training.
    """

    def __init__(
        self,
        judge: Reward | None = None,
        reader: Reader | None = None,
        attributes: Sequence[str] | None = None,
        tries: int = 2,
        threshold: float = 0.5,
        seed: int = 1 << 62,
    ) -> None:
        super().__init__()
        if tries < 2:
            raise ValueError(f"tries={tries} must be at least 2, or there is no diversity.")
        self.tries, self.threshold, self.seed, self.judge = tries, threshold, seed, judge
        if not isinstance(reader, Reader | None):
            raise ValueError(f"reader is a {type(reader).__name__}, not an attribute reader.")
        self.reader = reader
        known = [] if reader is None else [*reader.attributes]
        self.attributes = known if attributes is None else list(attributes)
        if foreign := sorted(set(self.attributes) - set(known)):
            raise ValueError(f"The reader has no attribute {', '.join(foreign)}; it has {', '.join(known) or 'none'}.")
        if maps := sorted(self.fields & {"depth", "saliency"}):
            raise ValueError(f"The judge needs {', '.join(maps)} of a generated image: set maps=detached for it.")
        self.requires_grad_(False)

    @property
    def fields(self) -> frozenset[str]:
        """What it needs of a batch besides key, prompt and product."""
        return frozenset() if self.judge is None else self.judge.fields

    @torch.no_grad()
    def forward(
        self, generator: Generator, batch: Batch, reward: Reward | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The measures by name, `reward`'s value among them, and the images (tries, batch, 3, height, width).

        Raises ValueError with the keys of non-finite images, rewards, values of the judge, logits or features.
        """
        keys = batch["key"]
        tries = torch.stack(
            [generator.sample(generator.encode(batch, self.seed + number)) for number in range(self.tries)]
        )
        found: dict[str, list[Tensor]] = {}
        features = []
        for images in tries:
            require_finite(images, "generated images", keys)
            if reward is not None:
                value = reward(images, {field: batch[field] for field in reward.fields}).value
                found.setdefault("reward", []).append(require_finite(value, "rewards", keys))
            if self.judge is not None:
                log_p = self.judge(images, {field: batch[field] for field in self.judge.fields}).value
                require_finite(log_p, "values of the judge", keys)
                found.setdefault("availability", []).append((log_p.exp() >= self.threshold).float())
            if self.reader is not None:
                followed = self.reader.followed(images, batch)
                hits = torch.stack([followed[name] for name in self.attributes])  # (attributes, batch)
                found.setdefault("attribute_accuracy", []).append((hits == 1).sum(dim=0) / (hits >= 0).sum(dim=0))
                features.append(require_finite(self.reader.net.features(images), "features", keys))
        measures = {name: torch.stack(values).mean(dim=0) for name, values in found.items()}
        measures["dissimilarity"] = within_prompt_dissimilarity(tries)
        if features:
            measures["diversity"] = within_prompt_diversity(torch.stack(features))
            measures["between_prompts"] = between_prompt_diversity(torch.stack(features))
        return measures, tries
