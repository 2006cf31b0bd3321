"""What RAHF and its baselines share: which parts of human feedback they predict, and how these are measured."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.batch import HEAT_MAPS, PADDING, SCORES, Batch
from src.metrics.correlation import Correlation
from src.metrics.saliency import Conventions, Saliency
from src.metrics.words import MisalignedWords
from src.models.rahf.report import draw_report
from src.models.rahf.tables import paper_tables
from src.models.rahf.words import word_labels
from src.runtime.finite import require_finite
from src.runtime.system import System


@dataclass(frozen=True)
class Prediction:
    """Predicted feedback; None for a part that a model does not predict.

    heat_maps: (batch, maps, h, w) in [0, 1], of any size, in the order of the system's `maps`. scores: (batch, 4), in
    the order of SCORES. misaligned: p of each word of the prompt, (batch, words), nan beyond the words.
    """

    heat_maps: Tensor | None = None
    scores: Tensor | None = None
    misaligned: Tensor | None = None


class FeedbackSystem(System):
    """Predicts some of the fields heatmaps, scores and aligned_words, which are its targets.

    A subclass sets `predicts` to these fields, and `maps` if it does not predict all of HEAT_MAPS.

    Metrics: `src.metrics.saliency` of each heat map, PLCC and SRCC of each score, precision, recall and F1 of the
    misaligned words; `mean`, of the mean SRCC, the mean CC of the heat maps and the words' F1, as far as there are any.
    """

    predicts: frozenset[str]
    maps: tuple[str, ...] = HEAT_MAPS

    def __init__(self) -> None:
        super().__init__()
        self.targets = self.predicts
        self.fields = self.predicts | {"image", "prompt"}
        self.metrics = nn.ModuleDict({split: self._metrics() for split in ("val", "test")})

    def _metrics(self) -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {}
        if "heatmaps" in self.predicts:
            parts |= {name: Saliency() for name in self.maps}
        if "scores" in self.predicts:
            parts["scores"] = Correlation(SCORES)
        if "aligned_words" in self.predicts:
            parts["words"] = MisalignedWords()
        return nn.ModuleDict(parts)

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """The predictions for a batch; gradients are not needed."""

    def evaluation_step(self, batch: Batch, split: str) -> None:
        metrics: Any = self.metrics[split]
        found = self.predict(batch)
        for what, values in (("heat maps", found.heat_maps), ("scores", found.scores)):
            if values is not None:
                require_finite(values, what, batch["key"])
        if found.heat_maps is not None:
            for index, name in enumerate(self.maps):
                metrics[name].update(found.heat_maps[:, index], batch["heatmaps"][:, HEAT_MAPS.index(name)])
        if found.scores is not None:
            metrics["scores"].update(found.scores, batch["scores"])
        if found.misaligned is not None:
            labels = batch["aligned_words"]
            word_labels(batch["prompt"], labels, batch["key"])
            chances = F.pad(found.misaligned, (0, labels.shape[1] - found.misaligned.shape[1]), value=torch.nan)
            metrics["words"].update(chances > 0.5, labels == 0, labels != PADDING)  # a word that was cut: aligned

    def evaluation_end(self, split: str) -> None:
        found = {}
        for name, metric in self.metrics[split].items():  # pyright: ignore[reportCallIssue]
            prefix = f"{name}_" if name in HEAT_MAPS else ""
            found |= {f"{prefix}{key}": value.float().to(self.device) for key, value in metric.compute().items()}
            metric.reset()
        maps = [found[name] for name in (f"{name}_cc" for name in HEAT_MAPS) if name in found]
        means = [found[name] for name in ("mean_srcc", "word_f1") if name in found]
        found["mean"] = torch.stack(means + ([torch.stack(maps).mean()] if maps else [])).mean()
        self.log_dict({f"{split}/{name}": value for name, value in found.items()})

    def tables(self, measured: Mapping[str, Mapping[str, float]]) -> str:
        plain = {
            model: {name.partition("/")[2]: value for name, value in metrics.items()}
            for model, metrics in measured.items()
        }
        return paper_tables(plain, asdict(Conventions()))

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws `feedback.png`: heat maps over test ads, with scores and misaligned words."""
        return draw_report(self, data, folder)
