"""Training and evaluation of RFNet, which predicts the availability of advertising images.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from src.build import node
from src.data.batch import CLASSES, Batch
from src.figures.confusion import confusion_figure
from src.metrics.availability import Availability
from src.metrics.calibration import temperature_errors
from src.models.augmentation import augmented
from src.models.layers import ImageEncoderSettings
from src.models.rfnet.layers import TextEncoderSettings
from src.models.rfnet.net import INPUTS, FusionSettings, RFNet
from src.models.rfnet.report import draw_report
from src.runtime.finite import require_finite
from src.runtime.schedules import SCHEDULES
from src.runtime.system import System


class RFNetSystem(System):
    """RFNet: classifies ad images as available or by their fault, from image, product, depth, saliency and title.

    Args:
        classes: names in the order of the labels; one is "available".
        inputs: any of product, image, depth, saliency, title; [image] is a plain classifier.
        image_encoder: of image and product; map_encoder: of depth and saliency, None: they share the image encoder.
        fusion: feature filters, fusion and classifier.
        text_encoder: of the title; may be None without that input.
        separate_encoders: each input image has an encoder of its own.
        product_background: grey value in [0, 1] behind the product.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak, then schedule "cosine" to 0, or "step"
            to a tenth in the middle of training.
        flip, colour: see `augmented`.
        threshold: predicted available if p(available) is at least this; None: if it is the likeliest class.
    """

    targets = frozenset({"label"})
    monitor = ("val/availability_ap", "max")

    def __init__(
        self,
        image_encoder: ImageEncoderSettings,
        fusion: FusionSettings,
        map_encoder: ImageEncoderSettings | None = None,
        text_encoder: TextEncoderSettings | None = None,
        classes: Sequence[str] = CLASSES,
        inputs: Sequence[str] = INPUTS,
        separate_encoders: bool = False,
        product_background: float = 0.5,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        schedule: str = "cosine",
        flip: float = 0.5,
        colour: float = 0.1,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule}: choose one of {', '.join(SCHEDULES)}.")
        self.net = RFNet(
            len(classes),
            inputs,
            image_encoder,
            map_encoder,
            separate_encoders,
            product_background,
            text_encoder,
            fusion,
        )
        self.encoders = {"image_encoder": image_encoder, "map_encoder": map_encoder, "text_encoder": text_encoder}
        self.classes = tuple(classes)
        self.fields = frozenset({*inputs, "label"})
        self.lr, self.weight_decay, self.warmup, self.schedule = lr, weight_decay, warmup, schedule
        self.flip, self.colour = flip, colour
        self.metrics = nn.ModuleDict({split: Availability(classes, threshold) for split in ("val", "test")})
        self.counts = nn.ModuleDict({split: MulticlassConfusionMatrix(len(classes)) for split in ("val", "test")})
        self.confusion: dict[str, Tensor] = {}  # of the latest val and test epoch
        self.calibration = "Not calibrated."

    def on_fit_start(self) -> None:
        """Raises ValueError if the tokenizer does not know the language of the titles."""
        if "title" in self.net.inputs:
            rows = self.trainer.datamodule.split("train")  # pyright: ignore[reportAttributeAccessIssue]
            self.net.title.check([rows[index]["title"] for index in range(0, len(rows), -(-len(rows) // 50))])

    def forward(self, batch: Batch) -> Tensor:
        """Logits (batch, classes), not calibrated."""
        return self.net(batch)

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Calibrated log-probabilities (batch, classes), float32, differentiable in the images."""
        return F.log_softmax(self.net(batch) / self.net.temperature, dim=1)

    def _step(self, batch: Batch, split: str) -> Tensor:
        if split == "train":
            batch = augmented(batch, self.flip, self.colour)
        logits, labels = self.net(batch), batch["label"]
        loss = F.cross_entropy(logits / self.net.temperature, labels)
        self.log(f"{split}/loss", loss, batch_size=len(labels), prog_bar=split == "train")
        if split != "train":
            require_finite(logits, "logits", batch["key"])
            for metric in (self.metrics[split], self.counts[split]):
                metric.update((logits / self.net.temperature).softmax(dim=1), labels)  # pyright: ignore
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self._step(batch, "train")

    def evaluation_step(self, batch: Batch, split: str) -> None:
        self._step(batch, split)

    def evaluation_end(self, split: str) -> None:
        metric: Any = self.metrics[split]
        counts: Any = self.counts[split]
        self.log_dict({f"{split}/{name}": value for name, value in metric.compute().items()})
        self.confusion[split] = counts.compute().cpu()
        metric.reset()
        counts.reset()
        if isinstance(self.logger, TensorBoardLogger):
            figure = confusion_figure(self.confusion[split], self.classes)
            self.logger.experiment.add_figure(f"{split}/confusion", figure, self.global_step)

    @torch.inference_mode()
    def predict(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Uncalibrated logits (images, classes) and labels (images,), on the CPU, of batches on this device."""
        training = self.training
        self.eval()
        pairs = [(require_finite(self.net(b), "logits", b["key"]).cpu(), b["label"].cpu()) for b in batches]
        self.train(training)
        logits, labels = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Sets the temperature with the smallest calibration error on `batches`.

        See `temperature_errors`.
        """
        errors = temperature_errors(*self.predict(batches))
        best = min(errors, key=lambda temperature: errors[temperature])
        self.net.temperature.fill_(best)
        errors_text = ", ".join(f"{error:.3f} at {temperature:.2f}" for temperature, error in errors.items())
        self.calibration = (
            f"Temperature {best:.2f}, chosen on the validation split by its calibration error: {errors_text}."
        )

    @property
    def card(self) -> dict[str, str]:
        """Texts of the model card."""
        return {
            "use": "Predicting which generated ad images are usable, filtering them (`python -m src.score "
            "reward=rfnet`), and as a reward for tuning a generator. It needs the product cut-out at its place on the "
            "canvas and the product title.",
            "limits": "It is trained on the products, rooms and faults of the data below only; the recalls below show "
            "its weak classes. Small networks are easily fooled by adversarial patterns: inspect the images of a tuned "
            "generator. test_perceived/ uses maps computed by the depth and saliency networks, like `src.score` and "
            "the reward; test/ uses the exact maps of the data. Expect the former in practice. "
            f"{self.calibration}",
        }

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer and the text encoder's configuration to folder/text."""
        encoders: dict[str, Any] = {
            name: e.saved() if isinstance(e, ImageEncoderSettings) else replace(e, pretrained=False)
            for name, e in self.encoders.items()
            if e is not None
        }
        if "title" in self.net.inputs:
            self.net.title.tokenizer.save_pretrained(folder / "text")
            self.net.title.net.config.save_pretrained(folder / "text")
            encoders["text_encoder"] = replace(encoders["text_encoder"], name="./text", options=None)
        return {name: node(encoder) for name, encoder in encoders.items()}

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws ten test ads with predictions, `ads.png`, and the test split's confusion matrix, `confusion.png`."""
        if "test" not in self.confusion:
            logits, labels = self.predict(data.batches("test", self.device))
            self.confusion["test"] = multiclass_confusion_matrix(logits, labels, num_classes=len(self.classes))
        return draw_report(self, data, folder)
