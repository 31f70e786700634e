"""An analysis directory as its readers, the figures and the report, see it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from slm.scaling.describe import Entry
from slm.scaling.sample import column_of


@dataclass(frozen=True)
class Directory:
    """What `slm.scaling.analyse` and the audit found, as the directory holds it."""

    path: Path
    fits: list[Entry]
    comparison: Entry
    audit: Entry
    settings: Entry
    overlay: Entry
    """Models from elsewhere beside the laws; empty without any."""

    @classmethod
    def read(cls, path: Path) -> Directory:
        """Read fits.json and comparison.json, and audit.json, settings.json and overlay.json if they are there."""
        fits, comparison = (json.loads((path / f"{name}.json").read_text()) for name in ("fits", "comparison"))
        others = (_if_there(path / f"{name}.json") for name in ("audit", "settings", "overlay"))
        return cls(path, fits, comparison, *others)

    @cached_property
    def results(self) -> pd.DataFrame:
        """The rows that were analysed."""
        frame = pd.read_csv(self.path / "results.csv", low_memory=False)
        return frame.assign(family=frame["family"].astype(str))

    @cached_property
    def tuning(self) -> pd.DataFrame:
        """The best learning rate of each shape; empty where none was tuned."""
        return _table_if_there(self.path / "tuning.csv")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Every run of a sweep, before rates were chosen; empty without a sweep."""
        return _table_if_there(self.path / "runs.csv")

    @property
    def primary(self) -> Entry:
        """Law, target, size, loss and level of the verdict."""
        return dict(self.comparison["primary"])

    @property
    def families(self) -> list[str]:
        """All families, in the order of the table."""
        return list(self.comparison["families"])

    @property
    def level(self) -> float:
        """Coverage of all intervals."""
        return float(self.primary.get("level") or 0.95)

    @property
    def own(self) -> list[Entry]:
        """The fits that the verdict is about, one a family."""
        return self.entries(law=self.primary["law"])

    @property
    def compared(self) -> Entry | None:
        """The comparison under the primary law; None where there was none."""
        found = self.comparison["laws"].get(self.primary["law"])
        return dict(found) if found else None

    def entries(self, *, law: str | None = None, target: str | None = None, size: str | None = None) -> list[Entry]:
        """Fits by the primary loss of one law (None: all), of the primary target and N unless others are asked for."""
        main = self.primary
        return [
            entry
            for entry in self.fits
            if law in (None, entry["law"])
            and entry["target"] == (target or main["target"])
            and entry["size"] in (None, "", size or main["size"])
            and entry["loss"] == main["loss"]
        ]

    def column(self, variable: str) -> str:
        """The column of results.csv that holds a law's variable."""
        return column_of(variable, str(self.primary["size"]))

    def equation(self, law: str) -> str:
        """A law that was fitted, as people write it."""
        return str(next(entry["equation"] for entry in self.fits if entry["law"] == law))


def _if_there(path: Path) -> Entry:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _table_if_there(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, low_memory=False) if path.exists() else pd.DataFrame()
