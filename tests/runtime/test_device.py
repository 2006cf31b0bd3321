import pytest
import torch

from src.runtime.device import autocast, check_accelerator, torch_device


def test_devices_and_precisions_are_checked_by_name():
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type in ("cpu", "cuda")
    for name in ("abacus", None):
        with pytest.raises(ValueError, match=f"device={name or 'null'}: "):
            torch_device(name)
    if not torch.cuda.is_available():
        for name in ("cuda", "gpu"):
            with pytest.raises(ValueError, match=f"trainer.accelerator={name}: there is none here; choose cpu or auto"):
                check_accelerator(name)
    check_accelerator("cpu")
    check_accelerator("auto")
    with pytest.raises(ValueError, match="precision=int8: choose one of float32, bfloat16"):
        autocast(torch.device("cpu"), "int8")
    layer = torch.nn.Linear(2, 2)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(torch.device("cpu"), name):
            assert layer(torch.ones(1, 2)).dtype == dtype
