from pathlib import Path
from typing import Any

import pytest

from tests.analysis.analysed import analysed, isoflop_runs, one_family, reported, two_families


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(analysed(tmp_path_factory.mktemp("two"), two_families(), laws=("power", "power_floor")))


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported(analysed(tmp_path_factory.mktemp("one"), one_family(), laws=("power", "power_floor", "chinchilla")))


@pytest.fixture(scope="session")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings: dict[str, Any] = {"laws": ("power", "chinchilla"), "law": "chinchilla", "flops_per_second": 1e14}
    return reported(analysed(tmp_path_factory.mktemp("iso"), isoflop_runs(), target_loss=2.2, **settings))


@pytest.fixture(params=["two", "one", "iso"])
def each(request: pytest.FixtureRequest) -> Path:
    """Each of the three in turn."""
    return request.getfixturevalue(request.param)
