"""Width and depth for a given number of parameters, by a family's own rule.

Widths are multiples of a head and depths of the mixer pattern, so few shapes of a small model come near a target size
and aspect. The feed-forward width then makes up the difference: it may be up to a quarter wider or narrower than by the
family's rule, in steps of 8 channels, or of fewer if the tolerance needs it. Of all shapes that meet the target, the
chosen one has the smallest sum of |ln(aspect / target aspect)|, |ln(feed-forward / rule)| and |ln(N / target)|.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from slm.model.config import ModelConfig
from slm.model.counts import num_params
from slm.sweep.recipe import Recipe

Size = Literal["params_total", "params_non_embedding"]

MAX_TOLERANCE = 0.02
"""Relative error of N that is accepted if no shape meets the tolerance asked for."""
ASPECT_SLACK = 2.0
"""Factor by which hidden_size / num_layers may miss the target aspect."""
FFN_SLACK = 0.25
"""Relative difference by which the feed-forward width may miss the family's rule."""
FFN_UNITS = (8, 4, 2, 1)
"""Matrix products are fastest at multiples of 8, but 8 channels are 2% of the parameters of a 200k model."""


@dataclass(frozen=True)
class SolvedShape:
    """A shape that meets a target."""

    width: int
    depth: int
    model: ModelConfig
    intermediate_size: int | None
    """Feed-forward width if it differs from the rule's."""
    misfit: float
    """The sum that was minimised."""


def count(model: ModelConfig, size: Size) -> int:
    """N of a shape."""
    return num_params(model, non_embedding=size == "params_non_embedding")


def solve(recipe: Recipe, target: float, aspect: float, size: Size, tolerance: float = MAX_TOLERANCE) -> SolvedShape:
    """The shape with `target` parameters (within `tolerance` or else 2%) and hidden_size / num_layers nearest `aspect`.

    Raises `ValueError` with the nearest possible N if no shape has both N and an aspect within a factor of 2.
    """
    for allowed in dict.fromkeys((tolerance, MAX_TOLERANCE)):
        shapes = [
            shape
            for width in _widths(recipe, target, aspect, size)
            for depth in _best_depths(recipe, width, target, size)
            if depth in _depths(recipe, width, aspect)
            and (shape := _fitted(recipe, width, depth, target, aspect, size, allowed))
        ]
        if shapes:
            return min(shapes, key=lambda shape: shape.misfit)
    nearest = " or ".join(f"{n:,}" for n in _nearest_sizes(recipe, target, aspect, size))
    raise ValueError(
        f"no shape has {target:,.0f} parameters ({size}) within {MAX_TOLERANCE:.0%}: the nearest have {nearest}"
    )


def _fitted(
    recipe: Recipe, width: int, depth: int, target: float, aspect: float, size: Size, tolerance: float
) -> SolvedShape | None:
    """The shape of this width and depth whose feed-forward meets the target; None if there is none."""
    by_rule = recipe.shape(width, depth)
    for model in (by_rule, *_with_other_ffn(by_rule, target, size)):
        ffn, usual = model.intermediate_size, by_rule.intermediate_size
        ratios = (width / depth / aspect, ffn / usual, count(model, size) / target)
        if abs(ratios[1] - 1) <= FFN_SLACK and abs(ratios[2] - 1) <= tolerance:
            misfit = sum(abs(math.log(ratio)) for ratio in ratios)
            return SolvedShape(width, depth, model, None if ffn == usual else ffn, misfit)
    return None


def _with_other_ffn(model: ModelConfig, target: float, size: Size) -> Iterator[ModelConfig]:
    """The shape with the feed-forward that brings N nearest to the target, in coarse steps first."""
    usual, now = model.intermediate_size, count(model, size)
    per_channel = count(dataclasses.replace(model, intermediate_size=usual + 1), size) - now
    for step in FFN_UNITS:
        ffn = usual + round((target - now) / per_channel / step) * step
        if ffn > 0:
            yield dataclasses.replace(model, intermediate_size=ffn)


def _widths(recipe: Recipe, target: float, aspect: float, size: Size) -> Iterator[int]:
    """Widths for which some allowed depth may meet the target; N grows with both."""
    least, most = target / (1 + FFN_SLACK), target / (1 - FFN_SLACK)
    low, high = 0, 1
    while not _reaches(recipe, high, least, aspect, size):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _reaches(recipe, middle, least, aspect, size) else (middle, high)
    while not (depths := _depths(recipe, high * recipe.width_step, aspect)) or (
        count(recipe.shape(high * recipe.width_step, depths[0]), size) <= most
    ):
        yield high * recipe.width_step
        high += 1


def _reaches(recipe: Recipe, index: int, target: float, aspect: float, size: Size) -> bool:
    """Whether the deepest allowed shape of a width has `target` parameters or more."""
    width = index * recipe.width_step
    depths = _depths(recipe, width, aspect)
    return bool(depths) and count(recipe.shape(width, depths[-1]), size) >= target


def _depths(recipe: Recipe, width: int, aspect: float) -> range:
    """Depths that keep the aspect of a width within `ASPECT_SLACK`."""
    step, middle = recipe.depth_step, width / aspect
    first = max(1, math.ceil(middle / ASPECT_SLACK / step))
    return range(first * step, math.floor(middle * ASPECT_SLACK / step) * step + 1, step)


def _best_depths(recipe: Recipe, width: int, target: float, size: Size) -> set[int]:
    """The two depths around the one that meets the target with the rule's feed-forward; N is linear in depth.

    No other depth is better: one more block loses more in the feed-forward than it gains in aspect.
    """
    step = recipe.depth_step
    n_1, n_2 = (count(recipe.shape(width, n * step), size) for n in (1, 2))
    blocks = 1 + (target - n_1) / (n_2 - n_1)
    return {n * step for n in (math.floor(blocks), math.ceil(blocks)) if n >= 1}


def _nearest_sizes(recipe: Recipe, target: float, aspect: float, size: Size) -> list[int]:
    """The nearest N below and above the target among the shapes nearest to the aspect."""
    below: list[int] = []
    index = 1
    while True:
        width = index * recipe.width_step
        if depths := _depths(recipe, width, aspect):
            depth = min(depths, key=lambda depth: abs(math.log(width / depth / aspect)))
            n = count(recipe.shape(width, depth), size)
            if n > target:
                return [*below[-1:], n]
            below.append(n)
        index += 1
