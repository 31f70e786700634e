"""Scaling laws of any table of runs: fits, uncertainty, comparison of families, power of designs, reports.

Usable alone: `fit(read_table("runs.csv"), "chinchilla")`. Pure numpy and scipy; imports no torch, nor other rooms.
"""

from slm.scaling.analysis import Analysis, analyse
from slm.scaling.fitting import Fit, fit, lack_of_fit
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.laws import LAWS, get_law
from slm.scaling.power import Advice, Design, PairedDesign, UnpairedDesigns, plan
from slm.scaling.settings import Settings
from slm.scaling.solver import Loss
from slm.scaling.tables import Table, read_table, table_from_frame

__all__ = [
    "LAWS",
    "Advice",
    "Analysis",
    "Design",
    "Fit",
    "Loss",
    "PairedDesign",
    "Settings",
    "Table",
    "Uncertainty",
    "UnpairedDesigns",
    "analyse",
    "fit",
    "get_law",
    "lack_of_fit",
    "plan",
    "read_table",
    "table_from_frame",
    "uncertainty",
]
