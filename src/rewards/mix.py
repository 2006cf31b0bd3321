"""The weighted sum or mean of several rewards, which is harder to exploit than a single reward."""

from collections.abc import Mapping

from torch import Tensor, nn

from src.data.batch import Batch
from src.rewards.base import Reward, Score


class Mix(Reward):
    """sum_i w_i value_i. Parts: name/value and name/part of each reward; heat maps: name/map.

    `rewards`, `weights`: by name; None: the mean. The weights must bring the values to the same scale. `threshold`: of
    the sum, from which `src.generate` accepts an image. Raises ValueError if the names of rewards and weights differ.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        if not rewards:
            raise ValueError("rewards: at least one is needed.")
        if weights is not None and (odd := sorted(rewards.keys() ^ weights.keys())):
            raise ValueError(f"weights and rewards differ: {', '.join(odd)}.")
        self.rewards = nn.ModuleDict(rewards)
        self.weights = dict(weights) if weights is not None else dict.fromkeys(rewards, 1 / len(rewards))
        self.fields = frozenset().union(*(reward.fields for reward in rewards.values()))
        self.heat_maps = tuple(f"{name}/{part}" for name, reward in rewards.items() for part in reward.heat_maps)
        if min(self.weights.values()) > 0:
            self.highest = sum(self.weights[name] * reward.highest for name, reward in rewards.items())
        self.threshold = threshold
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        scores = {name: reward(images, batch) for name, reward in self.rewards.items()}
        value = sum((self.weights[name] * score.value for name, score in scores.items()), images.new_zeros(len(images)))
        parts = {f"{name}/value": score.value for name, score in scores.items()}
        maps = {}
        for name, score in scores.items():
            parts |= {f"{name}/{part}": values for part, values in score.parts.items()}
            maps |= {f"{name}/{part}": values for part, values in score.maps.items()}
        return Score(value, parts, maps)
