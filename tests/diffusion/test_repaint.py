"""Regenerated images: what stays, what they depend on, and where the data module puts them."""

import lightning as L
import numpy as np
import pytest
import torch

from src.data.module import AdData
from src.data.splits import Source
from src.diffusion.repaint import Repaint
from src.runtime.system import System
from tests.data.records import Records
from tests.diffusion import tiny


def ads(count: int = 3) -> dict:
    return tiny.ads(count) | {"image": torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))}


def repainted(repaint: Repaint, batch: dict, seed: int) -> torch.Tensor:
    return repaint(batch, repaint.makes, seed)["image"]


def test_it_is_the_estimate_from_the_noised_latents_with_the_product_in_place():
    painter, batch = tiny.generator(guidance_scale=2.0), ads()
    made = repainted(Repaint(painter, share=0.1), batch, 5)  # the last step of 6 alone
    c, i = painter.encode(batch, 5), painter.num_steps - 1
    a = painter.alpha_bars[i]
    coded = painter.vae.encode(2 * batch["image"] - 1).latent_dist.mode() * painter.vae.config["scaling_factor"]
    x = a**0.5 * coded + (1 - a) ** 0.5 * c.noise
    text, uncond = painter.noise(x, i, c)
    clean = (x - (1 - a) ** 0.5 * (uncond + 2.0 * (text - uncond))) / a**0.5
    torch.testing.assert_close(made, painter.image(clean, c))
    inside = batch["product"][:, 3:].expand(-1, 3, -1, -1) == 1
    torch.testing.assert_close(made[inside], batch["product"][:, :3][inside])
    assert not made.requires_grad


def test_it_depends_on_seed_and_key():
    repaint, batch = Repaint(tiny.generator(), share=0.5), ads()
    assert torch.equal(repainted(repaint, batch, 1), repainted(repaint, batch, 1))
    assert not torch.allclose(repainted(repaint, batch, 1), repainted(repaint, batch, 2))
    with pytest.raises(ValueError, match=r"share=7 of the steps"):
        Repaint(tiny.generator(), share=7)


class Ads(Source):
    """A source of the fields that a repainter needs."""

    classes = ("a", "b")

    def __init__(self, fields: set[str] | None = None):
        self.fields = frozenset(fields or {"key", "image", "product", "prompt", "label"})

    def split(self, name: str) -> Records:
        rng, batch = np.random.default_rng(0), tiny.ads(8)
        products = (batch["product"] * 255).byte().numpy()
        images = rng.integers(0, 256, (8, 3, 64, 64), dtype=np.uint8)
        whole = {"image": images, "product": products, "prompt": batch["prompt"], "key": batch["key"]}
        records = ({f: v[i] for f, v in whole.items() if f in self.fields} for i in range(8))
        return Records(record | {"label": i % 2} for i, record in enumerate(records))


class Watcher(System):
    fields = frozenset({"image", "label"})

    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(1, 1), {"train": {}, "val": {}}

    def training_step(self, batch):
        self.seen["train"] |= dict(zip(batch["key"], batch["image"], strict=True))
        return self.net(torch.ones(1, 1)).sum()

    def evaluation_step(self, batch, split):
        self.seen[split] |= dict(zip(batch["key"], batch["image"], strict=True))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_share_of_training_rows_is_repainted_and_no_validation_row(tmp_path):
    source, runs = Ads(), []
    own = {row["key"]: torch.from_numpy(row["image"]) / 255 for row in source.split("train")}
    for _ in range(2):
        repaint, watcher = {"repainted": Repaint(tiny.generator(), 0.3)}, Watcher()
        data = AdData(source, 4, 0, transforms=repaint, shares={"repainted": 0.5})
        L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        ).fit(watcher, data)  # fmt: skip
        runs.append({key: torch.equal(image, own[key]) for key, image in watcher.seen["train"].items()})
        assert all(torch.equal(image, own[key]) for key, image in watcher.seen["val"].items())
    assert runs[0] == runs[1]
    assert 0 < sum(runs[0].values()) < 8
    assert data.kinds == {"repainted": {"transforms": ["repainted"]}}
    batch = next(iter(data.batches("test", **data.kinds["repainted"])))
    assert not any(torch.equal(image, own[key]) for key, image in zip(batch["key"], batch["image"], strict=True))


def test_refuses_by_name():
    with pytest.raises(ValueError, match=r"shares\.repainted=0\.5: there is no transform repainted"):
        AdData(Ads(), shares={"repainted": 0.5})
    repaint, source = {"repainted": Repaint(tiny.generator(), 0.3)}, Ads({"key", "image", "label"})
    with pytest.raises(ValueError, match="repainted needs product, prompt, which Ads lacks"):
        AdData(source, transforms=repaint, shares={"repainted": 0.5}).setup("fit")
    with pytest.raises(ValueError, match="repainted needs product, prompt, which Ads lacks"):
        AdData(source, transforms=repaint).batches("test", transforms=["repainted"])
    with pytest.raises(ValueError, match=r"there is no transform repainted; data\.transforms has none"):
        AdData(Ads()).batches("test", transforms=["repainted"])
