"""Who measures generated pictures and never teaches: a judge of availability and a reader of attributes.

No renderer knows the truth of a generated picture, and the reward that taught it is no witness.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from src.checkpoint import load
from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.metrics.diversity import within_prompt_dissimilarity, within_prompt_diversity
from src.models.reader import AttributeReader
from src.rewards.base import Reward
from src.rewards.rfnet import RFNetReward


class Panel(nn.Module):
    """Measures of what a generator paints for a batch, each (batch,): means over `tries` pictures of each product.

    availability: share that the judge holds for available. attribute_accuracy: share of the named attributes that the
    reader finds. diversity: `within_prompt_diversity` in the reader's features; dissimilarity:
    `within_prompt_dissimilarity` of the pictures themselves. Pictures depend on (seed, key) alone.

    Args:
        judge: an RFNet with maps of its own making, of folders that no reward uses; None: not measured.
        reader: checkpoint folder of an AttributeReader, None: neither attributes nor diversity in its features are
            measured.
        tries: pictures of each product, at least 2.
        seed: of the first try; above those that training uses up.
    """

    def __init__(
        self, judge: RFNetReward | None = None, reader: str | Path | None = None, tries: int = 2, seed: int = 1 << 62
    ) -> None:
        super().__init__()
        if tries < 2:
            raise ValueError(f"tries={tries} must be at least 2, or there is no diversity.")
        self.tries, self.seed, self.judge = tries, seed, judge
        self.reader = None if reader is None else load(reader).requires_grad_(False)
        if not isinstance(self.reader, AttributeReader | None):
            raise ValueError(f"{reader} holds {type(self.reader).__name__}, not AttributeReader.")
        if maps := sorted(self.fields & {"depth", "saliency"}):
            raise ValueError(f"The judge needs {', '.join(maps)} of a painted picture: make it maps=detached.")

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
                said = self.judge(images, {field: batch[field] for field in self.judge.fields})
                best = torch.stack([*said.parts.values()]).amax(dim=0)
                found.setdefault("availability", []).append((said.value == best).float())
            if isinstance(self.reader, AttributeReader):
                followed = torch.stack(list(self.reader.followed(images, batch["prompt"]).values()))
                found.setdefault("attribute_accuracy", []).append(followed.nanmean(dim=0))
                features.append(self.reader.net.features(images))
        measures = {name: torch.stack(values).mean(dim=0) for name, values in found.items()}
        measures["dissimilarity"] = within_prompt_dissimilarity(pictures)
        if features:
            measures["diversity"] = within_prompt_diversity(torch.stack(features))
        return measures, pictures
