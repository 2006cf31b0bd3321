"""Runs that break in the middle and go on."""

from collections.abc import Callable
from typing import Any

import pytest


def resumed(kind: type, train: Callable[[bool], Any], monkeypatch: pytest.MonkeyPatch, breaks_at: int = 5) -> Any:
    """What `train(resume)` gives when its first go is cut off at training step `breaks_at` of a system of `kind`."""
    whole_step, count = vars(kind)["training_step"], iter(range(100))

    def step(self: Any, batch: Any) -> Any:
        if next(count) == breaks_at:
            raise RuntimeError("power cut")
        return whole_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "training_step", step)
        with pytest.raises(RuntimeError, match="power cut"):
            train(False)
    return train(True)
