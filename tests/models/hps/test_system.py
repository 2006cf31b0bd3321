"""HPS learns choices, warns if it does not, is measured with its baselines, and ranks as a reward."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from src.build import build
from src.config import compose
from src.data.batch import Batch
from src.data.module import AdData
from src.data.splits import Source
from src.models.hps.reward import HPSReward
from src.models.hps.system import HPSSystem
from src.runtime.checkpoint import ABOUT, load, save
from tests.data.records import Records
from tests.models.stepping import QUIET, batches, one_step
from tests.rewards.tiny import on_clip

SIZES = (2, 3, 4, 2)


class Choices(Source):
    """The brightest image of a group is chosen; groups of two may be ties, of images of equal brightness."""

    classes = ()
    fields = frozenset({"key", "image", "prompt", "group", "chosen", "rank", "weight", "scores"})

    def split(self, name: str) -> "Grouped":
        rng = np.random.default_rng(len(name))
        return Grouped(record for group in range(24) for record in self.group(name, group, rng))

    def group(self, name: str, group: int, rng: np.random.Generator) -> list[dict]:
        size = SIZES[group % len(SIZES)]
        levels = rng.permutation(np.linspace(30, 220, size)) if group % 4 else np.full(size, 120.0)
        best = levels == levels.max()
        return [
            {
                "key": f"{name}{group}-{n}",
                "image": (levels[n] + rng.normal(0, 3, (3, 32, 32))).clip(0, 255).astype(np.uint8),
                "prompt": f"a chair in a {'red' if group % 3 else 'white'} room",
                "group": group,
                "chosen": best[n] / best.sum(),
                "rank": 1.0 + (levels > levels[n]).sum(),
                "weight": 1.0,
                "scores": np.array([0, 0, levels[n] / 255, 0.5], np.float32),
            }
            for n in range(size)
        ]


class Grouped(Records):
    @property
    def groups(self) -> np.ndarray:
        return np.array([record["group"] for record in self])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return on_clip(tmp_path_factory.mktemp("hps") / "config", "hps.system.HPSSystem", lr=2e-3)


@pytest.fixture(scope="module")
def trained(node):
    L.seed_everything(0, verbose=False)
    system, data = build({**node, "baseline": node["backbone"]}), AdData(Choices(), batch_size=16, num_workers=0)
    trainer = L.Trainer(**QUIET, max_steps=120, limit_val_batches=0)
    trainer.fit(system, data)
    system.calibrate(data.batches("val", "cpu"))
    (metrics,) = trainer.test(system, data, verbose=False)
    return system.eval(), metrics


def batch_of(groups: int = 5) -> Batch:
    """Noise images of a handful of groups, with arbitrary choices and a tie."""
    torch.manual_seed(1)
    sizes = [SIZES[n % len(SIZES)] for n in range(groups)]
    group = torch.repeat_interleave(torch.arange(groups), torch.tensor(sizes))
    chosen = torch.cat([torch.eye(size)[n % size] for n, size in enumerate(sizes)])
    return {
        "key": [f"row{row}" for row in range(len(group))],
        "image": torch.rand(len(group), 3, 32, 32),
        "prompt": [f"a {word} chair" for word in np.array(["red", "oak", "white", "teal", "navy"])[group]],
        "group": group,
        "chosen": chosen,
    }


def test_a_handful_of_groups_is_overfitted_to_loss_0(node):
    L.seed_everything(0, verbose=False)
    system, batch = build(node), batch_of()
    batch["chosen"][:2] = 0.5  # a tie
    trainer = L.Trainer(**QUIET, max_steps=300, limit_val_batches=0)
    trainer.fit(system, batches(*[batch] * 300))
    with torch.no_grad():
        loss = system.loss(system.logits(batch), batch).loss
    assert loss < 0.01


def test_a_loss_that_stays_at_log_n_is_warned_of(node):
    batch = batch_of()
    batch["image"][:] = 0.5  # nothing tells the images apart
    with pytest.warns(UserWarning, match=r"step 9: .* last 10 batches is 1\.000 of .*, 0\.\d+ \(log n\)"):
        L.Trainer(**QUIET, max_steps=12, limit_val_batches=0).fit(
            build({**node, "patience": 10}), batches(*[batch] * 12)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        system = build({**node, "patience": 10})
        for _ in range(25):
            system._watch(torch.tensor([0.9, 1.0]))


def test_it_learns_what_is_preferred(trained):
    metrics = trained[1]
    assert metrics["test/accuracy"] > 0.9
    assert metrics["test/pairwise_accuracy"] > 0.85
    assert metrics["test/tie_aware_accuracy"] > 0.7
    assert metrics["test/spearman"] > 0.8
    assert metrics["test/loss"] < 0.5 * metrics["test/chance"]
    assert {f"test/accuracy_of_{size}" for size in (2, 3, 4)} <= metrics.keys()


def test_baselines_are_in_the_table(trained):
    system, metrics = trained
    assert metrics["test/aesthetics_accuracy"] == 1, "brightness decides"
    assert metrics["test/overall_pairwise_accuracy"] == 0.5, "always the same"
    assert metrics["test/clip_accuracy"] < metrics["test/accuracy"]
    lines = {line.split("  ")[0]: line.split() for line in system.tables({"hps": metrics}).splitlines() if line}
    assert lines["HPS"][1] == f"{metrics['test/accuracy']:.4f}"
    assert lines["CLIP"][1] == f"{metrics['test/clip_accuracy']:.4f}"
    assert lines["random"][2:5] == ["0.5000", "0.3333", "0.2500"]
    assert "(18 groups with a choice, 6 without)" in system.tables({"hps": metrics})


def test_checkpoint_and_reward(trained, node, tmp_path: Path):
    system = trained[0]
    save(tmp_path, system, {**node, "baseline": node["backbone"]}, {}, dict.fromkeys(ABOUT, "a test"))
    other: Any = load(tmp_path)
    assert other.tie_threshold == system.tie_threshold
    images, batch = torch.rand(3, 3, 40, 32), {"prompt": ["red", "white", "a chair"]}
    reward = HPSReward(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(reward(images, batch).value, 100 * system.clip(images, batch["prompt"]))
        dark, light = (reward(torch.full((1, 3, 32, 32), v), {"prompt": ["a chair in a red room"]}) for v in (0.2, 0.8))
    assert light.value > dark.value
    assert HPSReward(tmp_path, resize="longest").clip.resize == "longest"


def test_frozen_layers_get_no_gradient_and_stay_in_eval_mode(node):
    system = build({**node, "image_layers": 1, "text_layers": 1})
    before = {name: weight.clone() for name, weight in system.net.named_parameters()}
    step = one_step(system, batch_of(), max_steps=2)
    assert step.gradients.keys() == {f"clip.net.{name}" for name, w in system.net.named_parameters() if w.requires_grad}
    for name, weight in system.net.named_parameters():
        assert weight.requires_grad or torch.equal(weight, before[name]), name
    assert not system.net.visual.transformer.resblocks[0].training
    assert system.train().net.visual.transformer.resblocks[2].training


def test_weights_of_groups_reach_the_loss(node):
    system, batch = build(node), batch_of(2)
    only = {**batch, "weight": (batch["group"] == 0).float()}
    first = {key: value[:2] for key, value in batch.items()}
    with torch.no_grad():
        losses = [system.loss(system.logits(some), some).loss for some in (only, first)]
    torch.testing.assert_close(*losses)


def test_non_finite_values_are_an_error_with_keys(trained):
    batch = batch_of()
    batch["image"][3, 0, 0, 0] = torch.nan
    with torch.no_grad(), pytest.raises(ValueError, match=r"HPS: NaN or infinite for 1 of \d+ images \(row3\)"):
        trained[0].evaluation_step(batch, "val")


def test_a_baseline_that_is_gone_is_left_out(node):
    system = build({**node, "baseline": {**node["backbone"], "weights": "nowhere/clip.safetensors"}})
    data = AdData(Choices(), batch_size=16, num_workers=0)
    with pytest.warns(UserWarning, match="no comparison with CLIP: There is no file or folder nowhere"):
        (metrics,) = L.Trainer(**QUIET).test(system, data, verbose=False)
    assert "test/clip_accuracy" not in metrics
    assert "CLIP" not in system.tables({"hps": metrics})


def test_fields_that_only_some_data_have(node):
    class Bare(Choices):
        fields = frozenset({"key", "image", "prompt", "group", "chosen"})

    for source, extra in ((Choices(), {"weight", "rank", "scores"}), (Bare(), set())):
        data = AdData(source, batch_size=16, num_workers=0)
        data.require(build(node))
        batch = next(iter(data.batches("test")))
        assert batch.keys() == {"key", "image", "prompt", "group", "chosen"} | extra


def test_the_yamls_fit_their_data():
    config = compose("fit", ["model=hps", "model.backbone.weights=null"])
    system, data = build(config.model), build(config.data)
    assert isinstance(system, HPSSystem)
    data.require(system)
    paper = compose("fit", ["experiment=hps_paper", "data.source.folder=any"])
    assert (paper.model.image_layers, paper.model.text_layers, paper.model.baseline.weights) == (10, 6, "openai")
    assert paper.data.source.format == "hpd_v1"
