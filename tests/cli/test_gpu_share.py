from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fedsynth.cli.run import gpu_share
from fedsynth.config import RunConfig


def cuda(monkeypatch: pytest.MonkeyPatch, devices: int, cpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)


def share(silos: int, device: str = "auto") -> float:
    return gpu_share(RunConfig.from_run_config({"num-clients": silos, "device": device}))


def test_gpu_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, 1, 16)
    assert share(10) == 0.0999
    assert share(10, "cpu") == 0.0
    assert share(1) == 0.9999
    cuda(monkeypatch, 1, 4)
    assert share(10) == 0.2499
    cuda(monkeypatch, 8, 64)
    assert share(4) == 1.0
    cuda(monkeypatch, 0, 16)
    assert share(10) == 0.0


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_shares_of_silos_that_run_at_once_fit_in_single_precision(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda(monkeypatch, devices, 512)
    for each in range(1, 100):
        part = np.float32(share(each * devices))
        assert each * part <= 1
        assert sum([part] * each, np.float32(0)) <= 1
        # No more of the GPU lies idle than a share's last digit.
        assert (each + 1) * part > 1 - each * 1e-4
