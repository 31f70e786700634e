"""Published laws, to be drawn over the same N range, with the same N and target, and never beside another quantity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law


@dataclass(frozen=True)
class Reference:
    """A published law of loss in nats per token; `size` is the N it was fitted with."""

    name: str
    law: Law
    params: Mapping[str, float]
    size: str
    source: str

    def log_loss(self, values: Mapping[str, Floats]) -> Floats:
        """log loss at values of the law's variables, arrays of one length."""
        log_x = np.log(np.stack([np.asarray(values[v], float) for v in self.law.variables], axis=1))
        return self.law.log_value(self.law.coordinates(self.params, np.zeros(log_x.shape[1]))[None], log_x)[0]


REFERENCES = (
    Reference(
        "Kaplan 2020, L(N)",
        get_law("power"),
        {"A": 8.8e13**0.076, "alpha": 0.076},
        "params_non_embedding",
        "Kaplan et al. 2020 (arXiv:2001.08361), equation 1.1",
    ),
    Reference(
        "Hoffmann 2022",
        get_law("chinchilla"),
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        "params_total",
        "Hoffmann et al. 2022 (arXiv:2203.15556), approach 3",
    ),
    Reference(
        "Besiroglu 2024",
        get_law("chinchilla"),
        {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        "params_total",
        "Besiroglu et al. 2024 (arXiv:2404.10102), refit of Hoffmann et al.'s data",
    ),
)


def local_exponent(log_size: Floats, log_value: Floats) -> float:
    """-slope of a straight line through log value against log size: what a power law finds in this range."""
    return -float(np.polyfit(log_size, log_value, 1)[0])
