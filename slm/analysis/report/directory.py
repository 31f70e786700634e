"""An analysis directory as the figures and the report read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from slm.report.style import colours, markers
from slm.scaling.describe import Entry
from slm.scaling.sample import column_of


@dataclass(frozen=True)
class Directory:
    """The files of an analysis directory; `audit`, `settings` and `overlay` are empty if it has no such file."""

    path: Path
    fits: list[Entry]
    comparison: Entry
    audit: Entry
    settings: Entry
    overlay: Entry

    @classmethod
    def read(cls, path: Path) -> Directory:
        """Read the JSON files; fits.json and comparison.json must be there."""
        fits, comparison = (json.loads((path / f"{name}.json").read_text()) for name in ("fits", "comparison"))
        optional = [path / f"{name}.json" for name in ("audit", "settings", "overlay")]
        return cls(path, fits, comparison, *(json.loads(p.read_text()) if p.exists() else {} for p in optional))

    @cached_property
    def results(self) -> pd.DataFrame:
        """The rows that were analysed."""
        frame = pd.read_csv(self.path / "results.csv", low_memory=False)
        return frame.assign(family=frame["family"].astype(str))

    def rows_of(self, family: str) -> pd.DataFrame:
        """The rows of one family."""
        return self.results[self.results["family"] == family]

    @cached_property
    def tuning(self) -> pd.DataFrame:
        """The best learning rate of each shape; empty if none was tuned."""
        return self._optional_table("tuning.csv")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Every run of a sweep, before its learning rates were chosen; empty without a sweep."""
        return self._optional_table("runs.csv")

    def _optional_table(self, name: str) -> pd.DataFrame:
        path = self.path / name
        return pd.read_csv(path, low_memory=False) if path.exists() else pd.DataFrame()

    @cached_property
    def primary(self) -> Entry:
        """Law, target, size, loss and level of the verdict."""
        return dict(self.comparison["primary"])

    @cached_property
    def families(self) -> list[str]:
        """All families, in the order of the table."""
        return list(self.comparison["families"])

    def colour(self, family: str) -> str:
        """The colour of a family in every figure."""
        return colours(self.families)[family]

    def marker(self, family: str) -> str:
        """The marker of a family in every figure."""
        return markers(self.families)[family]

    @property
    def level(self) -> float:
        """Coverage of all intervals."""
        return float(self.primary["level"] or 0.95)

    @property
    def own(self) -> list[Entry]:
        """The fits that the verdict is about, one a family."""
        return self.entries(law=self.primary["law"])

    @property
    def compared(self) -> Entry | None:
        """The comparison of families under the law of the verdict; None if there was none."""
        return self.comparison["laws"].get(self.primary["law"])

    def entries(self, *, law: str | None = None, target: str | None = None, size: str | None = None) -> list[Entry]:
        """Fits by the primary loss of one law (None: all); target and N are the primary ones unless given."""
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
