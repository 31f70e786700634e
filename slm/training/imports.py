"""Import Lightning quickly. Import this module before any other that imports Lightning.

Lightning imports torchmetrics for two classes that are never used here. Torchmetrics imports what it can find of scipy,
matplotlib and transformers, which takes about 3 of the 4.5 seconds. An empty module stands in for it meanwhile.
"""

import sys
from importlib.metadata import version
from types import ModuleType

NAME = "torchmetrics"

if not {NAME, "lightning"} & set(sys.modules):
    stand_in = ModuleType(NAME)
    stand_in.__dict__.update({name: type(name, (), {}) for name in ("Metric", "MetricCollection")})
    stand_in.__dict__["__version__"] = version(NAME)
    sys.modules[NAME] = stand_in
    try:
        import lightning  # noqa: F401
    finally:
        del sys.modules[NAME]  # whoever needs torchmetrics later gets the real module
