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
from src.models.rfnet import RFNetSystem
from src.rewards.base import Reward


class Panel(nn.Module):
    """Measures of what a generator paints for a batch, each (batch,): means over `tries` pictures of each product.

    available: share that the judge holds for available. attributes: share of the named ones that the reader finds.
    diversity: `within_prompt_diversity` in the reader's features; dissimilarity: `within_prompt_dissimilarity` of the
    pictures themselves. Pictures depend on (seed, key) alone.

    Args:
        judge: checkpoint folder of an RFNetSystem that no reward uses, None: not measured.
        reader: of an AttributeReader, None: neither attributes nor diversity in its features are measured.
        tries: pictures of each product, at least 2.
        seed: of the first try; above those that training uses up.
    """

    def __init__(
        self, judge: str | Path | None = None, reader: str | Path | None = None, tries: int = 2, seed: int = 1 << 40
    ) -> None:
        super().__init__()
        if tries < 2:
            raise ValueError(f"tries={tries} must be at least 2, or there is no diversity.")
        self.tries, self.seed = tries, seed
        self.judge = self._opened(judge, RFNetSystem)
        self.reader = self._opened(reader, AttributeReader)
        if maps := sorted(self.fields & {"depth", "saliency"}):
            raise ValueError(f"{judge} needs {', '.join(maps)}, which a painted picture has not; judge without.")

    def _opened(self, folder: str | Path | None, kind: type) -> nn.Module | None:
        if folder is None:
            return None
        system = load(folder)
        if not isinstance(system, kind):
            raise ValueError(f"{folder} holds {type(system).__name__}, not {kind.__name__}.")
        return system.requires_grad_(False)

    @property
    def fields(self) -> frozenset[str]:
        """What it needs of a batch besides key, prompt and product."""
        judge: RFNetSystem | None = self.judge  # pyright: ignore[reportAssignmentType]
        return frozenset() if judge is None else frozenset(judge.fields - {"image", "label"})

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
            seen = {**batch, "image": images}
            if reward is not None:
                found.setdefault("reward", []).append(reward(images, {f: batch[f] for f in reward.fields}).value)
            if isinstance(self.judge, RFNetSystem):
                best = self.judge.log_probabilities(seen).argmax(dim=1)
                available = self.judge.classes.index("available")
                found.setdefault("available", []).append((best == available).float())
            if isinstance(self.reader, AttributeReader):
                followed = torch.stack(list(self.reader.followed(images, batch["prompt"]).values()))
                found.setdefault("attributes", []).append(followed.nanmean(dim=0))
                features.append(self.reader.net.features(images))
        measures = {name: torch.stack(values).mean(dim=0) for name, values in found.items()}
        measures["dissimilarity"] = within_prompt_dissimilarity(pictures)
        if features:
            measures["diversity"] = within_prompt_diversity(torch.stack(features))
        return measures, pictures
