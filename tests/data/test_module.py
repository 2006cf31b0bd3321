import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from src.data.module import AdData
from src.data.splits import Source
from src.models.perception.transform import Perceived
from src.runtime.system import System
from tests.data.records import Records


class Numbers(Source):
    """A source whose record i shows the number i."""

    classes = ("a", "b")

    def __init__(self, num: int = 26, fields=("key", "image", "label")):
        self.num, self.fields = num, frozenset(fields)

    def split(self, name: str) -> Records:
        num = self.num if name == "train" else 7
        return Records({"key": f"{i}", "image": np.full((3, 2, 2), i, np.uint8), "label": i % 2} for i in range(num))


class Watcher(System):
    """Remembers what it is shown, and learns one number."""

    fields = frozenset({"image", "label"})

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.norm = torch.nn.BatchNorm1d(1)  # under DDP its buffers are sent round at every forward, in evaluation too
        self.seen, self.checked = [], []

    def training_step(self, batch):
        assert batch["image"].dtype == torch.float32
        assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
        self.seen.append(batch["key"])
        return self.norm(self.net(batch["image"][:, 0, 0, :1])).sum()

    def evaluation_step(self, batch, split):
        self.checked.append(batch["key"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def flat(batches: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(batches))


def trainer(**arguments) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    once = {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return L.Trainer(**quiet, **once, **arguments)


@pytest.mark.parametrize(("limit", "steps"), [(0.5, 3), (0.7, 4), (2, 2), (1.0, 6)])
def test_a_trainer_trains_on_the_share_of_an_epoch_that_it_is_limited_to(limit, steps):
    system = Watcher()
    trainer(max_epochs=2, limit_train_batches=limit).fit(system, AdData(Numbers(), batch_size=4, num_workers=0))
    assert len(system.seen) == 2 * steps  # 24 rows: 6 batches an epoch
    assert len(set(flat(system.seen[:steps]))) == 4 * steps


def test_a_run_is_the_same_for_any_number_of_workers():
    runs = []
    for num_workers in (0, 2):
        system = Watcher()
        trainer(max_epochs=2).fit(system, AdData(Numbers(), batch_size=4, num_workers=num_workers, seed=3))
        runs.append((system.seen, system.checked))
    assert runs[0] == runs[1]
    seen, checked = runs[0]
    assert len(seen) == 12
    assert all(len(set(flat(seen[e : e + 6]))) == 24 for e in (0, 6))
    assert seen[:6] != seen[6:]
    assert flat(checked[: len(checked) // 2]) == flat(checked[len(checked) // 2 :])
    assert sorted(flat(checked)) == sorted([f"{i}" for i in range(7)] * 2)


def test_ready_batches_are_whole_and_repeatable():
    ready = AdData(Numbers(), batch_size=3, num_workers=0).batches("val")
    for _ in range(2):
        assert [key for batch in ready for key in batch["key"]] == [f"{i}" for i in range(7)]
    assert all(batch["image"].dtype == torch.float32 for batch in ready)
    assert len(ready) == 3


def test_missing_fields_are_refused_by_name():
    system = Watcher()
    system.fields = frozenset({"image", "depth", "title"})
    with pytest.raises(
        ValueError, match=r"Watcher needs depth, title, which Numbers lacks \(it has image, key, label\)"
    ):
        trainer(max_epochs=1).fit(system, AdData(Numbers(), num_workers=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"shares": {"perceived": 0.5}}, r"shares\.perceived=0\.5: there is no transform perceived; .* has none"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdData(Numbers(), **arguments)


def test_a_set_smaller_than_a_batch_and_an_unknown_split_are_refused():
    with pytest.raises(ValueError, match="has 26 records, fewer than one batch of 27"):
        AdData(Numbers(), batch_size=27).train_dataloader()
    with pytest.raises(ValueError, match="'dev'; choose from train, val, test"):
        AdData(Numbers()).split("dev")


def test_perception_fills_the_missing_field_and_only_that(tmp_path):
    from src.models.perception.system import Saliency
    from src.runtime import checkpoint

    about = dict.fromkeys((*checkpoint.ABOUT,), "x")
    config = {"_target_": "src.models.perception.system.Saliency", "size": "tiny", "image_size": 32}
    checkpoint.save(tmp_path / "saliency", Saliency(size="tiny", image_size=32), config, {}, about)
    transforms = {"perceived": Perceived(saliency=str(tmp_path / "saliency"))}
    data = AdData(Numbers(), batch_size=3, num_workers=0, transforms=transforms)
    assert "saliency" in data.fields
    (batch, *_) = data.batches("val")
    net = checkpoint.load(tmp_path / "saliency")
    assert torch.equal(batch["saliency"], net(batch["image"]))
    assert batch["saliency"].shape == (2, 1, 2, 2)
    assert not batch["saliency"].requires_grad
    assert data.lacking == ["saliency"]
    given = AdData(
        Numbers(fields=("key", "image", "saliency")), transforms={"perceived": Perceived(saliency="nowhere")}
    )
    assert not given.lacking
    given.batches("val")  # the source's own maps are kept, the net is not even loaded


def test_a_net_that_the_system_does_not_need_is_not_loaded_and_none_makes_what_it_learns():
    data = AdData(Numbers(), batch_size=3, num_workers=0, transforms={"perceived": Perceived(saliency="nowhere")})
    data.require(Watcher())
    (batch, *_) = data.batches("val")
    assert "saliency" not in batch
    learner = Watcher()
    learner.fields, learner.targets = frozenset({"image", "saliency"}), frozenset({"saliency"})  # pyright: ignore
    with pytest.raises(ValueError, match="saliency made by a transform cannot be used as a target"):
        data.require(learner)


def test_a_share_of_the_training_rows_gets_computed_maps_and_evaluation_none(tmp_path):
    from src.models.perception.system import Saliency
    from src.runtime import checkpoint

    class Maps(Numbers):
        def split(self, name: str) -> Records:
            return Records(row | {"saliency": np.full((1, 2, 2), 255, np.uint8)} for row in super().split(name))

    class Collector(Watcher):
        fields = frozenset({"image", "saliency", "label"})

        def __init__(self):
            super().__init__()
            self.maps = {"train": [], "val": []}

        def training_step(self, batch):
            self.maps["train"].append(batch["saliency"].mean(dim=(1, 2, 3)))
            return self.net(torch.ones(1, 1)).sum()

        def validation_step(self, batch):
            self.maps["val"].append(batch["saliency"].mean(dim=(1, 2, 3)))

        def test_step(self, batch): ...

    about = dict.fromkeys((*checkpoint.ABOUT,), "x")
    config = {"_target_": "src.models.perception.system.Saliency", "size": "tiny", "image_size": 32}
    checkpoint.save(tmp_path / "saliency", Saliency(size="tiny", image_size=32), config, {}, about)
    source = Maps(num=250, fields=("key", "image", "saliency", "label"))
    runs = []
    for _ in range(2):
        perceived = {"perceived": Perceived(saliency=str(tmp_path / "saliency"))}
        data = AdData(source, 50, 0, transforms=perceived, shares={"perceived": 0.5})
        system = Collector()
        trainer(max_epochs=1).fit(system, data)
        runs.append(torch.cat(system.maps["train"]))
        assert all(bool((maps == 1).all()) for maps in system.maps["val"])
        own, made = (next(iter(data.batches("val", transforms=way)))["saliency"] for way in ([], ["perceived"]))
        assert bool((own == 1).all())
        assert float(made.max()) < 1
    exact = (runs[0] == 1).float().mean()
    assert 0.4 < exact < 0.6
    assert torch.equal(*runs)
    with pytest.raises(ValueError, match=r"shares\.perceived=1\.5 must be in \[0, 1\]"):
        AdData(source, transforms=perceived, shares={"perceived": 1.5})


def test_a_system_is_sent_the_fields_that_it_needs_and_no_others():
    class Labels(Watcher):
        fields = frozenset({"label"})

    data = AdData(Numbers(), batch_size=4, num_workers=0)
    assert set(next(iter(data.batches("train")))) == {"key", "image", "label"}
    data.require(Labels())
    assert set(next(iter(data.batches("train")))) == {"key", "label"}


class Groups(Numbers):
    """Groups of 2, 3 and 4 records; the 7 records of val and test are two groups."""

    def __init__(self):
        super().__init__(27, ("key", "image", "label", "group"))

    def split(self, name: str) -> "GroupedRecords":
        groups = [2, 3, 4] * 3 if name == "train" else [3, 4]
        numbers = np.repeat(np.arange(len(groups)), groups).tolist()
        records = zip(super().split(name), numbers, strict=True)
        return GroupedRecords(record | {"group": group} for record, group in records)


class GroupedRecords(Records):
    @property
    def groups(self) -> np.ndarray:
        return np.array([record["group"] for record in self])


class Chooser(Watcher):
    fields = frozenset({"image", "label", "group"})

    def training_step(self, batch):
        assert len(batch["key"]) <= 4
        return super().training_step(batch)


def is_whole(batch: list[str]) -> bool:
    """Whether a training batch has all records or none of each group."""
    starts = np.cumsum([0, *[2, 3, 4] * 3]).tolist()
    groups = [{f"{i}" for i in range(*span)} for span in pairwise(starts)]
    return all(group <= set(batch) or not group & set(batch) for group in groups)


def test_a_system_that_needs_groups_gets_whole_ones():
    system = Chooser()
    trainer(max_epochs=2).fit(system, AdData(Groups(), batch_size=4, num_workers=0))
    assert all(is_whole(batch) for batch in system.seen)
    assert len(system.seen) == 2 * len(set(map(tuple, system.seen[: len(system.seen) // 2])))
    assert sorted(flat(system.checked)) == sorted([f"{i}" for i in range(7)] * 2)
    assert {len(batch) for batch in system.checked} == {3, 4}
    data = AdData(Groups(), batch_size=8, num_workers=0)
    data.require(system)
    assert [batch["group"].tolist() for batch in data.batches("val", rows=range(3, 7))] == [[1] * 4]


def test_two_processes_see_every_record_once(tmp_path):
    """A real DDP run over gloo, this file being the program."""
    program = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    runs = {run: [rank[run] for rank in ranks] for run in ranks[0]}
    for run, steps in {"0.5": 3, "groups": 4}.items():  # a share is applied once, not twice
        shown = [batch for rank in runs[run] for batch in rank["shown"]]
        assert [len(rank["shown"]) for rank in runs[run]] == [steps, steps]
        assert len(flat(shown)) == len(set(flat(shown)))
        for kind in ("checked", "tested", "evaluated"):
            assert sorted(flat([batch for rank in runs[run] for batch in rank[kind]])) == [f"{i}" for i in range(7)]
    assert all(is_whole(batch) for rank in runs["groups"] for batch in rank["shown"])
    assert {len(batch) for rank in runs["groups"] for batch in rank["checked"]} == {3, 4}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_checkpointing": False}
    state = {}
    for name in ("0.5", "groups"):
        system, data = Watcher(), AdData(Numbers(), batch_size=2, num_workers=0)
        if name == "groups":
            system, data = Chooser(), AdData(Groups(), batch_size=4, num_workers=0)
        limit = 1.0 if name == "groups" else float(name)
        run = L.Trainer(**quiet, **two, max_epochs=1, num_sanity_val_steps=0, limit_train_batches=limit)
        run.fit(system, data)
        state[name] = {"shown": list(system.seen), "checked": list(system.checked)}
        system.checked.clear()
        run.test(system, data, verbose=False)
        state[name]["tested"] = list(system.checked)
        system.checked.clear()
        run.test(system, data.batches("test", place=(run.world_size, run.global_rank)), verbose=False)
        state[name]["evaluated"] = list(system.checked)
    torch.save(state, f"{folder}/{run.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
