"""The matmul peak is a share's denominator: never zero, however slow the machine."""

import itertools
import time

import pytest
import torch

from slm.training import peak


def test_peak_of_a_machine_too_slow_for_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))  # every look at the clock takes a second
    assert peak._rate(8, "cpu", torch.float32) == 4 * 2 * 8**3
