"""The laws, in one registry: functions of log sizes with gradient and curvature, for many parameter vectors at once.

Notable: a law is fitted in coordinates in which it is well-behaved. Coefficients enter as logarithms and *centred*: at
the geometric mean of the data instead of at N = 1 (where A of A N^-alpha would be, ten decades away from any data).
`canonical` turns coordinates into the parameters that people quote.

Axes: R parameter vectors fitted at once, I rows of data, P coordinates, K terms, V variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from zlib import crc32

from slm.scaling.forms import Curvature, Floats, KaplanJoint, SumOfPowers, Term

VARIABLES = {
    "N": "parameters",
    "D": "training tokens",
    "C": "training FLOPs",
    "w": "width (hidden size)",
    "d": "depth (layers)",
}


class Law(Protocol):
    """What fitting needs of a law. `theta` holds coordinates: log coefficients first, then exponents."""

    @property
    def name(self) -> str:
        """Key in `LAWS`."""

    @property
    def equation(self) -> str:
        """The law as people write it."""

    @property
    def source(self) -> str:
        """Where it comes from."""

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns of the data it needs, of `VARIABLES`."""

    @property
    def parameters(self) -> Mapping[str, str]:
        """Quoted parameters, in the order of the coordinates, and what each means."""

    @property
    def exponents(self) -> tuple[str, ...]:
        """The parameters that are exponents; the first is the one families are ranked by."""

    @property
    def floor(self) -> int | None:
        """Coordinate of log E, if the law has a floor."""

    @property
    def linear(self) -> bool:
        """Whether log L is linear in the coordinates, so that fits and t intervals are exact."""

    @property
    def absolute(self) -> bool:
        """Whether it takes log variables as they are, not centred (`refs` are then 0)."""

    @property
    def coefficients(self) -> int:
        """How many coordinates, the first, are logs of what a term is at the centre of the data."""

    @property
    def signed(self) -> frozenset[str]:
        """Parameters that are their own coordinate; the others are above 0 and enter as logarithms."""

    @property
    def powers(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        """Coefficient -> (variable, exponent) of each power that it multiplies."""

    @property
    def variable_of(self) -> Mapping[str, str]:
        """Exponent -> the variable, or variables, that it is of."""

    def at(self, log_x: Floats) -> Law:
        """The same law made ready for a table with log variables [I, V]; itself if it needs to know nothing of it."""

    def shape(self, log_y: Floats) -> tuple[Floats, Floats, Floats] | None:
        """Bounds ([S], [S]) and starts [R, S] of the coordinates that are no coefficients.

        None where they are exponents alone, or the law has no terms.
        """

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """log L [R, I] of coordinates [R, P] at centred log variables [I, V]."""

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """log L [R, I], its gradient [R, P, I], and weights [R, I] -> their weighted sum of Hessians [R, P, P]."""

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        """Quoted parameters [R, P] of coordinates [R, P]; `refs` [V] is where log variables were centred."""

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        """Coordinates [P] of quoted parameters: the inverse of `canonical`."""

    def recentred(self, theta: Floats, old: Floats, new: Floats) -> Floats:
        """Coordinates [R, P] of the same curves with log variables centred at `new` instead of `old`, both [V]."""

    def functional(self, name: str, refs: Floats) -> Floats | None:
        """The vector [P] whose product with the coordinates is exponent `name`, or log of coefficient `name`.

        None where that is no linear function of the coordinates.
        """

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        """Given exponents [R, .], the law is linear: basis [R, I, K] and target [R, I], both relative to the data."""

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        """Coordinates [R, P] of the logs of what `basis` was multiplied by [R, K] and exponents [R, .]."""


_KAPLAN = "Kaplan et al. 2020 (arXiv:2001.08361), section 1.2"
_FLOOR = "Henighan et al. 2020 (arXiv:2010.14701), equation 1.1"


def _power(name: str, variable: str, *, floor: bool) -> SumOfPowers:
    """A power law in one variable, with or without a floor."""
    thing = VARIABLES[variable]
    power = {"A": f"loss above the floor at one unit of {thing}" if floor else f"loss at one unit of {thing}"}
    return SumOfPowers(
        name=name,
        equation=f"L = E + A {variable}^-alpha" if floor else f"L = A {variable}^-alpha",
        source=_FLOOR if floor else _KAPLAN,
        terms=((Term("E"),) if floor else ()) + (Term("A", variable, "alpha"),),
        parameters=({"E": f"loss at unlimited {thing}"} if floor else {})
        | power
        | {"alpha": f"exponent in {thing}" + (" of the loss above the floor" if floor else "")},
    )


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        _power("power", "N", floor=False),
        _power("power_floor", "N", floor=True),
        _power("power_D", "D", floor=False),
        _power("power_floor_D", "D", floor=True),
        _power("power_C", "C", floor=False),
        _power("power_floor_C", "C", floor=True),
        SumOfPowers(
            name="chinchilla",
            equation="L = E + A/N^alpha + B/D^beta",
            source="Hoffmann et al. 2022 (arXiv:2203.15556), equation 2",
            terms=(Term("E"), Term("A", "N", "alpha"), Term("B", "D", "beta")),
            parameters={
                "E": "loss of an unlimited model on unlimited data",
                "A": "loss due to finite N at N = 1",
                "B": "loss due to finite D at D = 1",
                "alpha": "exponent in N",
                "beta": "exponent in D",
            },
        ),
        KaplanJoint(),
        SumOfPowers(
            name="width_depth",
            equation="L = E + A/w^a + B/d^b + C/D^c",
            source="the form of Hoffmann et al. 2022, equation 2, with N split into width and depth",
            terms=(Term("E"), Term("A", "w", "a"), Term("B", "d", "b"), Term("C", "D", "c")),
            parameters={
                "E": "loss at unlimited width, depth and data",
                "A": "loss due to finite width at width 1",
                "B": "loss due to finite depth at depth 1",
                "C": "loss due to finite D at D = 1",
                "a": "exponent in width",
                "b": "exponent in depth",
                "c": "exponent in D",
            },
        ),
    )
}


FORMULAS = {
    "shared_exponent": {
        "formula": "E + A*N**-a + B*D**-a",
        "source": "Gadre et al. 2024 (arXiv:2403.08540), equation 3",
    }
}
"""Laws that are shorter as formulas (`slm.scaling.formulas`): fitted where they are named."""


def get_law(name: str, formulas: Mapping[str, Any] | None = None, columns: Iterable[str] = ()) -> Law:
    """The law called `name`, of `LAWS`, `FORMULAS` or `formulas` about `columns`; `ValueError` lists what there is."""
    if name in LAWS:
        return LAWS[name]
    own = FORMULAS | dict(formulas or {})
    if name not in own:
        raise ValueError(f"law {name!r} is none of {', '.join((*LAWS, *own))}")
    from slm.scaling.formulas import read_formula  # sympy is slow to import, and seldom needed

    return read_formula(name, own[name], columns)


def number_of(name: str) -> int:
    """A number of its own for each law, to seed its generators with."""
    return list(LAWS).index(name) if name in LAWS else 1000 + crc32(name.encode())
