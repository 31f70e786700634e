"""Scaling laws for any table of runs: fits, uncertainty, comparison of families, power of designs.

Usable alone: `fit(read_table("runs.csv"), "chinchilla")`. Names are imported at first use, because loading scipy takes
seconds and some modules do not need it.
"""

# ruff: noqa: F401 (these imports are for type checkers; `__getattr__` imports at run time)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.scaling.analysis import Analysis, analyse
    from slm.scaling.fitting import Fit, fit, lack_of_fit
    from slm.scaling.intervals import Uncertainty, uncertainty
    from slm.scaling.laws import LAWS, get_law
    from slm.scaling.power import Advice, Design, PairedDesign, UnpairedDesigns, plan
    from slm.scaling.settings import Settings
    from slm.scaling.solver import Loss
    from slm.scaling.tables import Table, read_table, table_from_frame

_MODULES = {
    "analysis": ("Analysis", "analyse"), "fitting": ("Fit", "fit", "lack_of_fit"),
    "intervals": ("Uncertainty", "uncertainty"), "laws": ("LAWS", "get_law"),
    "power": ("Advice", "Design", "PairedDesign", "UnpairedDesigns", "plan"), "settings": ("Settings",),
    "solver": ("Loss",), "tables": ("Table", "read_table", "table_from_frame"),
}  # fmt: skip
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
