"""Redrawing until the reward accepts: none lost, none twice, slots always full, and the same in any batch."""

import pytest
import torch
from torch import Tensor

from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.diffusion.recurrent import attempt_seed, recurrent
from src.rewards.base import Reward, Score
from tests.diffusion import tiny


class Redness(Reward):
    fields = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        self.sizes.append(len(images))
        return Score(images[:, 0].mean(dim=(1, 2)) - images[:, 2].mean(dim=(1, 2)), {})


def records(count: int) -> list[dict]:
    product = (tiny.ads(1)["product"][0] * 255).byte().numpy()
    return [{"key": f"p{i}", "prompt": "a red room", "product": product} for i in range(count)]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny.generator(num_steps=2)


def alone(generator: Generator, key: str, seed: int) -> tuple[Tensor, float]:
    batch = tiny.ads(1) | {"key": [key], "prompt": ["a red room"]}
    batch["product"] = torch.from_numpy(records(1)[0]["product"])[None].float() / 255
    picture = generator.sample(generator.encode(batch, seed))
    return picture[0], float(Redness()(picture, batch).value[0])


def test_every_product_leaves_once_with_its_first_accepted_picture_or_its_best(generator):
    values = {f"p{i}": [alone(generator, f"p{i}", attempt_seed(3, n))[1] for n in range(4)] for i in range(7)}
    ordered = sorted(value for row in values.values() for value in row)
    threshold = (ordered[24] + ordered[25]) / 2  # 3 of 28 pass
    reward = Redness()
    done = list(recurrent(generator, reward, records(7), threshold, attempts=4, batch_size=3, seed=3))
    assert sorted(job.record["key"] for job, _ in done) == sorted(values)
    for job, accepted in done:
        expected = values[job.record["key"]]
        first = next((n for n, value in enumerate(expected) if value >= threshold), None)
        assert accepted == (first is not None)
        assert job.attempts == (4 if first is None else first + 1)
        assert job.values == pytest.approx(expected[: job.attempts], abs=1e-5)
        best = max(range(job.attempts), key=job.values.__getitem__)
        assert list(job.images) == [job.best] == [best]
        picture, _ = alone(generator, job.record["key"], attempt_seed(3, best))
        torch.testing.assert_close(job.images[best], picture, atol=1e-5, rtol=0)
    assert {accepted for _, accepted in done} == {True, False}
    assert reward.sizes == rounds(
        [job.attempts for _, job in sorted([(job.record["key"], job) for job, _ in done], key=lambda pair: pair[0])], 3
    )


def rounds(attempts: list[int], slots: int) -> list[int]:
    """The sizes of batches if a free slot is taken at once by the next product, each of which needs so many."""
    waiting, busy, sizes = list(attempts), [], []
    while waiting or busy:
        while waiting and len(busy) < slots:
            busy.append(waiting.pop(0))
        sizes.append(len(busy))
        busy = [left - 1 for left in busy if left > 1]
    return sizes


def test_products_are_read_only_as_slots_become_free(generator):
    taken = []

    def lazily():
        for record in records(50):
            taken.append(record["key"])
            yield record

    stream = recurrent(generator, Redness(), lazily(), threshold=-9.0, attempts=1, batch_size=4)
    next(stream)
    assert len(taken) == 4
    assert next(recurrent(generator, Redness(), [], 0.0, 1, 4), None) is None
    with pytest.raises(ValueError, match="attempts=0 and batch_size=4 must be at least 1"):
        next(recurrent(generator, Redness(), [], 0.0, 0, 4))


def test_a_pool_has_the_images_of_all_attempts(generator):
    done = list(recurrent(generator, Redness(), records(3), -10.0, attempts=3, batch_size=2, seed=3, keep_all=True))
    assert sorted(job.record["key"] for job, _ in done) == ["p0", "p1", "p2"]
    for job, accepted in done:
        assert accepted
        assert sorted(job.images) == [0, 1, 2]
        for attempt, image in job.images.items():
            expected, value = alone(generator, job.record["key"], attempt_seed(3, attempt))
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
            assert job.values[attempt] == pytest.approx(value, abs=1e-5)


def test_non_finite_images_and_rewards_are_an_error_with_their_keys(generator, monkeypatch):
    monkeypatch.setattr(Redness, "score", lambda self, images, batch: Score(images.mean(dim=(1, 2, 3)) / 0, {}))
    with pytest.raises(ValueError, match=r"^rewards: NaN or infinite for 2 of 2 images \(p0, p1\)"):
        next(recurrent(generator, Redness(), records(2), 0.5, attempts=2, batch_size=2))
    broken = tiny.generator(num_steps=2)
    torch.nn.init.constant_(broken.vae.decoder.conv_out.weight, torch.nan)
    with pytest.raises(ValueError, match=r"^generated images: NaN or infinite for 2 of 2 images \(p0, p1\)"):
        next(recurrent(broken, Redness(), records(2), 0.5, attempts=2, batch_size=2))
