"""Scaling laws of any table of runs: fits, uncertainty, comparison of families, power of designs, reports.

Usable alone: `fit(read_table("runs.csv"), "chinchilla")`. Pure numpy and scipy; imports no torch, nor other rooms.
"""

from slm.scaling.analysis import Analysis, analyse
from slm.scaling.fitting import Fit, fit, lack_of_fit
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import LAWS, get_law
from slm.scaling.power import Design, plan, seeds_needed, span_needed
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table, read_table, table_from_frame

__all__ = [
    "LAWS",
    "Analysis",
    "Design",
    "Fit",
    "Loss",
    "Settings",
    "Table",
    "Uncertainty",
    "analyse",
    "fit",
    "get_law",
    "lack_of_fit",
    "plan",
    "read_table",
    "seeds_needed",
    "span_needed",
    "table_from_frame",
    "uncertainty",
]
