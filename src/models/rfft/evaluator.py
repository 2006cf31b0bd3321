"""Who measures generated pictures and never teaches: a judge of availability and a reader of attributes.

No renderer knows the truth of a generated picture, and the reward that taught it is no witness.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.metrics.diversity import between_prompt_diversity, within_prompt_dissimilarity, within_prompt_diversity
from src.rewards.base import Reward


@runtime_checkable
class Reader(Protocol):
    """A frozen net that reads attributes from images, such as `src.models.attributes.system.AttributeReader`."""

    net: Any  # net.features(images): (batch, features)

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    def followed(self, images: Tensor, prompts: Sequence[str], /) -> dict[str, Tensor]:
        """1 where an image shows what its prompt names, 0 where not, NaN where it names nothing; (batch,) each."""
        ...


class Evaluator(nn.Module):
    """Measures of what a generator paints for a batch, each (batch,): means over `tries` pictures of each product.

    availability: share to which the judge gives p(available) >= `threshold`. attribute_accuracy: share of the
    `attributes` named in the prompt that the reader finds. diversity: `within_prompt_diversity` in the reader's
    features, between_prompts: `between_prompt_diversity` in them, over the products of the batch; dissimilarity:
    `within_prompt_dissimilarity` of the pictures themselves. Pictures depend on (seed, key) alone.

    Args:
        judge: a reward whose value is log p(available), of checkpoints that no reward uses; None: not measured.
        reader: None: neither attributes nor diversity in its features are measured.
        attributes: of the reader's, those that count, as it may know some better than others; None: all.
        tries: pictures of each product, at least 2.
        threshold: of the judge's p(available).
        seed: of the first try; above those that training uses up.
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
            raise ValueError(f"reader is a {type(reader).__name__}, which reads no attributes.")
        self.reader = reader
        known = [] if reader is None else [*reader.attributes]
        self.attributes = known if attributes is None else list(attributes)
        if foreign := sorted(set(self.attributes) - set(known)):
            raise ValueError(f"The reader reads no {', '.join(foreign)}; it reads {', '.join(known) or 'nothing'}.")
        if maps := sorted(self.fields & {"depth", "saliency"}):
            raise ValueError(f"The judge needs {', '.join(maps)} of a painted picture: make it maps=detached.")
        self.requires_grad_(False)

    @property
    def fields(self) -> frozenset[str]:
        """What it needs of a batch besides key, prompt and product."""
        return frozenset() if self.judge is None else self.judge.fields

    @torch.no_grad()
    def forward(
        self, generator: Generator, batch: Batch, reward: Reward | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The measures by name, `reward`'s value among them, and the pictures (tries, batch, 3, height, width)."""
        pictures = torch.stack(
            [generator.sample(generator.encode(batch, self.seed + number)) for number in range(self.tries)]
        )
        found: dict[str, list[Tensor]] = {}
        features = []
        for images in pictures:
            if reward is not None:
                found.setdefault("reward", []).append(reward(images, {f: batch[f] for f in reward.fields}).value)
            if self.judge is not None:
                said = self.judge(images, {field: batch[field] for field in self.judge.fields}).value
                found.setdefault("availability", []).append((said.exp() >= self.threshold).float())
            if self.reader is not None:
                followed = self.reader.followed(images, batch["prompt"])
                counted = torch.stack([followed[name] for name in self.attributes])
                found.setdefault("attribute_accuracy", []).append(counted.nanmean(dim=0))
                features.append(self.reader.net.features(images))
        measures = {name: torch.stack(values).mean(dim=0) for name, values in found.items()}
        measures["dissimilarity"] = within_prompt_dissimilarity(pictures)
        if features:
            measures["diversity"] = within_prompt_diversity(torch.stack(features))
            measures["between_prompts"] = between_prompt_diversity(torch.stack(features))
        return measures, pictures
