"""Published laws. Compare them only with fits over the same sizes, with the same definition of N and target."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law

MAX_EXTRAPOLATION = 10.0
"""A law is not used if the table's sizes or tokens lie outside the law's fitted range by more than this factor."""


@dataclass(frozen=True)
class Reference:
    """A published law of the loss in nats per token. `size` names the column that counts N as the authors did."""

    name: str
    law: Law
    params: Mapping[str, float]
    size: str
    source: str
    fitted: Mapping[str, tuple[float, float]]  # smallest and largest value of each variable in the authors' runs

    def outside_range(self, values: Mapping[str, Floats]) -> dict[str, dict[str, Any]]:
        """Return both ranges, and the `factor` between them, of each variable that leaves the fitted range."""
        outside: dict[str, dict[str, Any]] = {}
        for name, (low, high) in self.fitted.items():
            smallest, largest = float(np.min(values[name])), float(np.max(values[name]))
            factor = max(low / smallest, largest / high)
            if factor > 1:
                outside[name] = {"table": [smallest, largest], "fitted": [low, high], "factor": factor}
        return outside

    def log_loss(self, values: Mapping[str, Floats]) -> Floats:
        """Return the natural log of the loss at `values` of the law's variables (arrays of equal length)."""
        log_x = np.log(np.stack([np.asarray(values[name], float) for name in self.law.variables], axis=1))
        theta = self.law.coordinates(self.params, np.zeros(log_x.shape[1]))
        return self.law.log_value(theta[None], log_x)[0]


REFERENCES = (
    Reference(
        name="Kaplan 2020, L(N)",
        law=get_law("power"),
        params={"A": 8.8e13**0.076, "alpha": 0.076},
        size="params_non_embedding",
        source="Kaplan et al. 2020 (arXiv:2001.08361), equation 1.1; N from 768 to 1.5B without embeddings (section 3)",
        fitted={"N": (768, 1.5e9)},
    ),
    Reference(
        name="Hoffmann 2022",
        law=get_law("chinchilla"),
        params={"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        size="params_total",
        source="Hoffmann et al. 2022 (arXiv:2203.15556), approach 3; N from 70M to 16B, D from 5B to 500B (abstract)",
        fitted={"N": (7e7, 1.6e10), "D": (5e9, 5e11)},
    ),
    Reference(
        name="Besiroglu 2024",
        law=get_law("chinchilla"),
        params={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        size="params_total",
        source="Besiroglu et al. 2024 (arXiv:2404.10102), refit of 240 points of Hoffmann et al.'s figure 4; N from "
        "57M to 16B, D from 0.82B to 318B (their data)",
        fitted={"N": (5.7e7, 1.62e10), "D": (8.18e8, 3.18e11)},
    ),
)


def local_exponent(log_size: Floats, log_value: Floats) -> float:
    """Return the exponent of the best power law: minus the slope of log value against log size."""
    return -float(np.polyfit(log_size, log_value, 1)[0])
