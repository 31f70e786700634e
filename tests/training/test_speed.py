"""The matmul peak is a share's denominator: never zero, however slow the machine."""

import itertools
import time

import pytest
import torch

from slm.training import speed


def test_peak_of_a_machine_too_slow_for_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))  # every look at the clock takes a second
    assert speed._matmul_rate(8, "cpu", torch.float32) == 2 * 8**3  # the first product, which took all of the time


def test_a_machine_that_emulates_the_type_is_not_asked_for_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(speed, "_matmul_rate", lambda size, *_: (asked.append(size), 1e9)[1])
    assert speed.measure_matmul("cpu", torch.bfloat16) == 1e9
    assert asked == [512]  # of 1024 a product alone would take 2 seconds
    asked.clear()
    monkeypatch.setattr(speed, "_matmul_rate", lambda size, *_: (asked.append(size), 1e11)[1])
    speed.measure_matmul("cpu", torch.float32)
    assert asked == [512, 1024, 2048]
