"""Read the files of an analysis directory, for the report and its figures."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from slm.report.markdown import figure
from slm.report.style import colours, markers
from slm.runtime.words import axis_name, target_label, target_name
from slm.scaling.describe import Entry

TEXT_COLUMNS = {"family": str, "run_id": str}  # a family may be called 007


@dataclass(frozen=True)
class Directory:
    """The files of an analysis directory; those of optional files are empty if the file is missing."""

    path: Path
    fits: list[Entry]
    comparison: Entry
    audit: Entry
    settings: Entry
    overlay: Entry
    decisions: Entry

    @classmethod
    def read(cls, path: Path) -> "Directory":
        """Read the JSON files. Raises `FileNotFoundError` if fits.json or comparison.json is missing."""

        def load(file: Path) -> Any:
            return json.loads(file.read_text(encoding="utf-8"))

        fits, comparison = (load(path / f"{name}.json") for name in ("fits", "comparison"))
        optional = [path / f"{name}.json" for name in ("audit", "settings", "overlay", "decisions")]
        return cls(path, fits, comparison, *(load(file) if file.exists() else {} for file in optional))

    @cached_property
    def results(self) -> pd.DataFrame:
        """The rows that were analysed, with `family` as text."""
        return self.sweep_table("results.csv")

    def family_rows(self, family: str) -> pd.DataFrame:
        """The rows of one family."""
        return self.results[self.results["family"] == family]

    def sweep_table(self, name: str) -> pd.DataFrame:
        """A table that may be missing, such as tuning.csv, which only a sweep writes; empty if the file is missing."""
        path = self.path / name
        return pd.read_csv(path, low_memory=False, dtype=TEXT_COLUMNS) if path.exists() else pd.DataFrame()

    @cached_property
    def verdict_basis(self) -> Entry:
        """The settings of the fits on which the verdict is based: `law`, `target`, `size`, `loss`, `level`."""
        return dict(self.comparison["primary"])

    @property
    def has_law(self) -> bool:
        """Whether a law was fitted to any family; False for a table with too few sizes."""
        return any(entry["fitted"] for entry in self.fits)

    @property
    def target_name(self) -> str:
        """The target of the verdict as used in sentences: `bits per byte`."""
        return target_name(self.verdict_basis["target"])

    @property
    def target_label(self) -> str:
        """The target of the verdict with its unit, as the label of an axis."""
        return target_label(self.verdict_basis["target"])

    def axis_name(self, variable: str) -> str:
        """A law's variable as the label of an axis."""
        return axis_name(variable, self.verdict_basis["size"])

    @cached_property
    def families(self) -> list[str]:
        """The families, in the order of results.csv."""
        return list(self.comparison["families"])

    def colour(self, family: str) -> str:
        """The colour of a family in every figure."""
        return colours(self.families)[family]

    def marker(self, family: str) -> str:
        """The marker of a family in every figure."""
        return markers(self.families)[family]

    @property
    def level(self) -> float:
        """The coverage of all intervals, as a fraction."""
        return float(self.verdict_basis["level"] or 0.95)

    @property
    def verdict_fits(self) -> list[Entry]:
        """The fits that the verdict is based on, one per family."""
        return self.entries(law=self.verdict_basis["law"])

    @property
    def verdict_comparison(self) -> Entry | None:
        """The comparison of families under the law of the verdict; None if the families were not compared."""
        return self.comparison["laws"].get(self.verdict_basis["law"])

    def entries(self, *, law: str | None = None, target: str | None = None, size: str | None = None) -> list[Entry]:
        """The fits under one law or all laws, with the loss, target and size of the verdict unless others are given."""
        loss, target = self.verdict_basis["loss"], target or self.verdict_basis["target"]
        sizes = (size or self.verdict_basis["size"], None, "")  # a law without N has no size
        fits = [entry for entry in self.fits if law is None or entry["law"] == law]
        return [e for e in fits if e["loss"] == loss and e["target"] == target and e["size"] in sizes]

    def equation(self, law: str) -> str:
        """The equation of a fitted law: `L = A N^-alpha`."""
        return str(next(entry["equation"] for entry in self.fits if entry["law"] == law))

    def figure(self, name: str, caption: str) -> str:
        """A figure of the report with its caption, as Markdown; empty if it was not drawn."""
        return figure(self.path, name, caption)
