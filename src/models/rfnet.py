"""RFNet, which tells usable advertising pictures from four kinds of unusable ones, and how it is trained.

Du et al., "Towards Reliable Advertising Image Generation Using Human Feedback", ECCV 2024, arXiv 2408.00418.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from src.data.batch import CLASSES, PICTURES, Batch
from src.metrics.availability import Availability, confusion_figure
from src.metrics.calibration import temperature_errors
from src.models.augment import augmented
from src.models.fusion import FeatureFilter, PictureEncoder, TitleEncoder
from src.models.perception import resize
from src.models.rfnet_sheet import draw_report
from src.models.schedule import SCHEDULES, adamw

INPUTS = ("product", "image", "depth", "saliency", "title")  # e_o, e_g, e_d, e_s, e_c
ENCODERS = {  # which pictures share an encoder
    "shared": {"product": "picture", "image": "picture", "depth": "picture", "saliency": "picture"},
    "paired": {"product": "picture", "image": "picture", "depth": "map", "saliency": "map"},
    "separate": {"product": "product", "image": "image", "depth": "depth", "saliency": "saliency"},
}


class RFNet(nn.Module):
    """Logits (batch, classes), float32, of a batch's `inputs`: float pictures in [0, 1] of any size, titles as str.

    f = SelfAttention(Concat(e_f, e_g, e_d, e_s)), pooled and classified. The title reaches the result through the
    product (`FeatureFilter`). Without a title e_f is e_o; without a product there is nothing to filter by, and the
    title's own tokens join the others. The arguments are `RFNetSystem`'s.
    """

    temperature: Tensor

    def __init__(
        self,
        num_classes: int,
        inputs: Sequence[str],
        image_encoder: str,
        encoder_options: Mapping[str, Any] | None,
        encoder_pretrained: bool,
        encoder_stage: int,
        encoders: str,
        image_size: int,
        map_size: int,
        unshuffle: int,
        grid: int | None,
        product_background: float,
        product_alpha: bool,
        text_encoder: str,
        text_options: Mapping[str, Any] | None,
        text_pretrained: bool,
        max_title_tokens: int,
        ordinal_numbers: bool,
        word_noise: float,
        width: int,
        num_heads: int,
        num_filters: int,
        num_fusion: int,
        feedforward: int,
        dropout: float,
        pooling: str,
    ) -> None:
        super().__init__()
        for value, name, choices in ((encoders, "encoders", tuple(ENCODERS)), (pooling, "pooling", ("mean", "cls"))):
            if value not in choices:
                raise ValueError(f"{name}={value}: choose one of {', '.join(choices)}.")
        if not inputs or set(inputs) - set(INPUTS) or len(set(inputs)) < len(inputs):
            raise ValueError(f"inputs={list(inputs)}: give some of {', '.join(INPUTS)}, each once.")
        if encoders == "shared" and map_size != image_size and set(inputs) & {"depth", "saliency"}:
            raise ValueError(f"encoders=shared takes one size, but image_size={image_size} and map_size={map_size}.")
        self.inputs = tuple(name for name in INPUTS if name in inputs)
        self.pictures = tuple(name for name in self.inputs if name != "title")
        self.shares = {name: ENCODERS[encoders][name] for name in self.pictures}
        self.product_background, self.product_alpha = product_background, product_alpha
        self.encoders = nn.ModuleDict({
            share: PictureEncoder(
                image_encoder, width, 4 if product_alpha else 3,
                map_size if share in ("map", "depth", "saliency") else image_size,
                encoder_pretrained, encoder_options, encoder_stage, grid, unshuffle,
            )
            for share in dict.fromkeys(self.shares.values())
        })  # fmt: skip
        self.positions = nn.ParameterDict()  # place on the canvas and kind of picture at once
        for name in self.pictures:
            encoder: Any = self.encoders[self.shares[name]]
            self.positions[name] = nn.Parameter(0.1 * torch.randn(encoder.grid**2, width))
        if "title" in self.inputs:
            self.title = TitleEncoder(
                text_encoder, width, text_pretrained, text_options, max_title_tokens, ordinal_numbers, word_noise
            )
        if {"title", "product"} <= set(self.inputs):
            self.filters = nn.ModuleList(FeatureFilter(width, num_heads, dropout) for _ in range(num_filters))
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, width)) if pooling == "cls" else None
        self.fusion = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, feedforward, dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_fusion)
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, batch: Batch) -> Tensor:
        tokens = self.tokens(batch)
        padding = {name: e.new_zeros(e.shape[:2], dtype=torch.bool) for name, e in tokens.items()}
        if "title" in self.inputs:
            title, blank = self.title(batch["title"])
            if "product" in tokens:
                for layer in self.filters:
                    tokens["product"] = layer(tokens["product"], title, blank)
            else:
                tokens["title"], padding["title"] = title, blank
        x = torch.cat(list(tokens.values()), dim=1)  # (batch, tokens, width)
        blank = torch.cat(list(padding.values()), dim=1)  # (batch, tokens)
        if self.cls is not None:
            x, blank = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1), F.pad(blank, (1, 0))
        for layer in self.fusion:
            x = layer(x, src_key_padding_mask=blank if "title" in tokens else None)
        x = self.norm(x)
        if self.cls is not None:
            pooled = x[:, 0]
        else:
            pooled = x.masked_fill(blank[..., None], 0).sum(dim=1) / (~blank).sum(dim=1, keepdim=True)
        return self.classifier(pooled).float()

    def tokens(self, batch: Batch) -> dict[str, Tensor]:
        """e_o, e_g, e_d, e_s with their positions, each (batch, grid * grid, width)."""
        found: dict[str, Tensor] = {}
        for share, encoder in self.encoders.items():
            names = [name for name in self.pictures if self.shares[name] == share]
            found |= zip(names, encoder([self.prepared(name, batch) for name in names]), strict=True)
        return {name: found[name] + self.positions[name] for name in self.pictures}

    def prepared(self, name: str, batch: Batch) -> Tensor:
        """The picture with 3 channels, the product on its background; with `product_alpha` 4, the last its opacity.

        The opacity says of every picture where the product lies in it; it is 1 if the net does not see the product.
        """
        picture = batch[name]
        if picture.ndim != 4 or picture.shape[1] != PICTURES[name]:
            raise ValueError(f"{name} must be (batch, {PICTURES[name]}, height, width), got {tuple(picture.shape)}.")
        seen = "product" in self.inputs
        alpha = resize(batch["product"][:, 3:], picture.shape[-2:]) if seen else torch.ones_like(picture[:, :1])
        colours = picture[:, :3].expand(-1, 3, -1, -1)
        if name == "product":
            colours = colours * alpha + self.product_background * (1 - alpha)
        return torch.cat([colours, alpha.to(colours)], dim=1) if self.product_alpha else colours


class RFNetSystem(L.LightningModule):
    """RFNet: is an advertising picture usable, and if not, why; from picture, product, depth, saliency and title.

    Args:
        classes: names in the order of the labels; one is "available".
        inputs: what the net sees: product, image, depth, saliency, title. Fewer are ablations; [image] is a plain
            classifier.
        image_encoder, encoder_options, encoder_pretrained, encoder_stage: a timm net, see `PictureEncoder`.
        encoders: shared (one for all pictures), paired (image and product, depth and saliency) or separate.
        image_size: side of image and product for their encoder, px; map_size: of depth and saliency.
        unshuffle, grid: see `PictureEncoder`.
        product_background: grey in [0, 1] behind the product; product_alpha: its alpha is the fourth channel of every
            picture.
        text_encoder, text_options, text_pretrained, max_title_tokens, ordinal_numbers, word_noise: see `TitleEncoder`.
        width, num_heads: of all tokens and attention; num_filters: N1; num_fusion: N2; feedforward: width in those.
        pooling: the classifier sees the mean of the tokens, or the "cls" one.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak, then schedule "cosine" to 0, or "step"
            to a tenth in the middle of training.
        flip, colour: see `augmented`.
        threshold: predicted available if p(available) is at least this; None: if it is the likeliest class.
    """

    targets = frozenset({"label"})
    monitor = ("val/availability_ap", "max")

    def __init__(
        self,
        classes: Sequence[str] = CLASSES,
        inputs: Sequence[str] = INPUTS,
        image_encoder: str = "resnet50",
        encoder_options: Mapping[str, Any] | None = None,
        encoder_pretrained: bool = False,
        encoder_stage: int = -1,
        encoders: str = "shared",
        image_size: int = 384,
        map_size: int = 384,
        unshuffle: int = 1,
        grid: int | None = None,
        product_background: float = 0.5,
        product_alpha: bool = False,
        text_encoder: str = "src/data/showroom/text",
        text_options: Mapping[str, Any] | None = None,
        text_pretrained: bool = False,
        max_title_tokens: int = 48,
        ordinal_numbers: bool = False,
        word_noise: float = 0.0,
        width: int = 384,
        num_heads: int = 8,
        num_filters: int = 1,
        num_fusion: int = 3,
        feedforward: int = 1536,
        dropout: float = 0.1,
        pooling: str = "mean",
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        schedule: str = "cosine",
        label_smoothing: float = 0.0,
        flip: float = 0.5,
        colour: float = 0.1,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule}: choose one of {', '.join(SCHEDULES)}.")
        self.net = RFNet(
            len(classes), inputs, image_encoder, encoder_options, encoder_pretrained, encoder_stage, encoders,
            image_size, map_size, unshuffle, grid, product_background, product_alpha, text_encoder, text_options,
            text_pretrained, max_title_tokens, ordinal_numbers, word_noise, width, num_heads, num_filters, num_fusion,
            feedforward, dropout, pooling,
        )  # fmt: skip
        self.classes = tuple(classes)
        self.fields = frozenset({*inputs, "label"})
        self.lr, self.weight_decay, self.warmup, self.schedule = lr, weight_decay, warmup, schedule
        self.label_smoothing, self.flip, self.colour = label_smoothing, flip, colour
        self.metrics = nn.ModuleDict({split: Availability(classes, threshold) for split in ("val", "test")})
        self.counts = nn.ModuleDict({split: MulticlassConfusionMatrix(len(classes)) for split in ("val", "test")})
        self.confusion: dict[str, Tensor] = {}  # of the latest val and test epoch
        self.calibration = "Not calibrated."

    def on_fit_start(self) -> None:
        """Raises ValueError if the titles are in a language that the text encoder does not read."""
        if "title" in self.net.inputs:
            rows = self.trainer.datamodule.split("train")  # pyright: ignore[reportAttributeAccessIssue]
            self.net.title.check([rows[index]["title"] for index in range(0, len(rows), -(-len(rows) // 50))])

    def forward(self, batch: Batch) -> Tensor:
        """Logits (batch, classes), not calibrated."""
        return self.net(batch)

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Calibrated log-probabilities (batch, classes), float32, differentiable in the pictures."""
        return F.log_softmax(self.net(batch) / self.net.temperature, dim=1)

    def _step(self, batch: Batch, split: str) -> Tensor:
        if split == "train":
            batch = augmented(batch, self.flip, self.colour)
        logits, labels = self.net(batch), batch["label"]
        smoothing = self.label_smoothing if split == "train" else 0.0
        loss = F.cross_entropy(logits / self.net.temperature, labels, label_smoothing=smoothing)
        self.log(f"{split}/loss", loss, batch_size=len(labels), prog_bar=split == "train", sync_dist=split != "train")
        if split != "train":
            for metric in (self.metrics[split], self.counts[split]):
                metric.update((logits / self.net.temperature).softmax(dim=1), labels)  # pyright: ignore
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch) -> None:
        self._step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        self._measure("test")

    def _measure(self, split: str) -> None:
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
        """Uncalibrated logits (pictures, classes) and labels (pictures,), on the CPU, of batches on this device."""
        training = self.training
        self.eval()
        pairs = [(self.net(batch).cpu(), batch["label"].cpu()) for batch in batches]
        self.train(training)
        logits, labels = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def calibrate(self, batches: Iterable[Batch]) -> float:
        """Sets the temperature that minimises the cross-entropy of `batches`, if it mends their calibration.

        See `temperature_errors`.
        """
        errors = temperature_errors(*self.predict(batches))
        best = min(errors, key=lambda temperature: errors[temperature])
        self.net.temperature.fill_(best)
        told = ", ".join(f"{error:.3f} at {temperature:.2f}" for temperature, error in errors.items())
        self.calibration = f"Temperature {best:.2f}, chosen on the validation split by its calibration error: {told}."
        return best

    def configure_optimizers(self) -> Any:
        return adamw(self, self.lr, self.weight_decay, self.warmup, self.schedule)

    @property
    def card(self) -> dict[str, str]:
        """Texts of the model card."""
        return {
            "use": "Telling which generated advertising pictures are usable, filtering them (`python -m src.score "
            "reward=rfnet`), and as the reward that tunes a generator. It wants the product cut-out in its place on "
            "the canvas, and the shop's title.",
            "limits": "It knows the products, rooms and faults of the data below and no others; the recalls below tell "
            "its weak classes. A small net can be fooled by patterns made against it: look at the pictures that a "
            "tuned generator makes. test_perceived/ has the maps that the depth and saliency nets make of the picture, "
            "as `src.score` and a reward have them; test/ has the data's own, which are exact there: expect the "
            f"former. {self.calibration}",
        }

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes the tokenizer and the text encoder's configuration to folder/text."""
        own = {"encoder_pretrained": False, "text_pretrained": False}
        if "title" not in self.net.inputs:
            return own
        self.net.title.tokenizer.save_pretrained(folder / "text")
        self.net.title.net.config.save_pretrained(folder / "text")
        return {**own, "text_encoder": "./text", "text_options": None}

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws ten test ads as the net sees them, `ads.png`, and the test split's `confusion.png`."""
        if "test" not in self.confusion:
            logits, labels = self.predict(data.batches("test", self.device))
            self.confusion["test"] = multiclass_confusion_matrix(logits, labels, num_classes=len(self.classes))
        return draw_report(self, data, folder)
