"""Choose the width and depth of a family for a target number of parameters N and a target aspect.

The aspect is hidden_size / num_layers. Widths are multiples of the width of a head, and depths are multiples of the
length of the mixer pattern, so few small shapes come near both targets. Therefore the feed-forward width makes up the
difference in N: it may be up to a quarter wider or narrower than the family's rule says, in steps of 8 channels, or in
smaller steps if the tolerance needs them. Among the shapes that meet the target N, the shape with the smallest misfit
is chosen: |ln(aspect / target aspect)| + |ln(feed-forward width / width under the rule)| + |ln(N / target N)|.
"""

import dataclasses
import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from omegaconf.errors import OmegaConfBaseException

from slm.model.config import ModelConfig
from slm.model.counts import num_params
from slm.sweep.recipe import Recipe

Size = Literal["params_total", "params_non_embedding"]
"""How the parameters N are counted."""

MAX_TOLERANCE = 0.02
"""Relative error of N that is accepted if no shape meets the requested tolerance."""
ASPECT_SLACK = 2.0
"""Factor by which the aspect may differ from the target aspect."""
FFN_SLACK = 0.25
"""Largest relative difference between the feed-forward width and its value under the family's rule."""
FFN_STEPS = (8, 4, 2, 1)
"""Steps of the feed-forward width, in the order in which they are tried. Matrix products are fastest at multiples of 8,
but 8 channels are 2% of the parameters of a 200k model."""

REPLACEMENT_STEP = 1.01
"""Factor between the sizes that are tried in place of a size that a family cannot reach."""
MAX_REPLACEMENT_STEPS = 70
"""Most of these steps from the requested size: a factor of 2."""


@dataclass(frozen=True, kw_only=True)
class SolvedShape:
    """A shape that meets a target N."""

    width: int
    depth: int
    model: ModelConfig
    intermediate_size: int | None
    """Feed-forward width; None if it is the width under the family's rule."""
    misfit: float
    """Defined in the docstring of this module."""


def count_params(model: ModelConfig, size: Size) -> int:
    """The number of parameters N of a shape, as `size` defines it."""
    return num_params(model, non_embedding=size == "params_non_embedding")


def solve(recipe: Recipe, target: float, aspect: float, size: Size, tolerance: float = MAX_TOLERANCE) -> SolvedShape:
    """Find the shape with `target` parameters, within `tolerance` or else within 2%, and the smallest misfit.

    Raises `ValueError` with the nearest possible N if no shape has this N and an aspect within a factor of 2.
    """
    for max_error in (tolerance, MAX_TOLERANCE):
        shapes: list[SolvedShape] = []
        for width in _widths(recipe, target, aspect, size):
            allowed = _depths(recipe, width, aspect)
            depths = [depth for depth in _best_depths(recipe, width, target, size) if depth in allowed]
            fits = [_fit_ffn(recipe, width, depth, target, aspect, size, max_error) for depth in depths]
            shapes += filter(None, fits)
        if shapes:
            return min(shapes, key=lambda shape: shape.misfit)
    nearest = " or ".join(f"{n:,}" for n in _nearest_sizes(recipe, target, aspect, size))
    raise ValueError(
        f"no shape has {target:,.0f} parameters ({size}) within {MAX_TOLERANCE:.0%}: the nearest shapes have {nearest}"
    )


def nearest_common_size(families: Sequence[Callable[[float], SolvedShape]], target: float) -> float | None:
    """The N nearest to `target` at which every family has a shape; None if there is none within a factor of 2.

    A family is a function that returns its shape for N, as `solve` does.
    """
    remaining = list(families)
    for step in range(MAX_REPLACEMENT_STEPS + 1):
        factor = REPLACEMENT_STEP**step
        for size in dict.fromkeys((target * factor, target / factor)):
            candidate = float(f"{size:.3g}") if step else target
            failing = next((family for family in remaining if not has_shape(family, candidate)), None)
            if failing is None:
                return candidate
            remaining.sort(key=lambda family: family is not failing)  # the next size is probably too hard for it too
    return None


def has_shape(family: Callable[[float], SolvedShape], target: float) -> bool:
    """Whether a family has a shape with `target` parameters."""
    try:
        family(target)
    except (ValueError, OmegaConfBaseException):
        return False
    return True


def _fit_ffn(
    recipe: Recipe, width: int, depth: int, target: float, aspect: float, size: Size, tolerance: float
) -> SolvedShape | None:
    """The shape of this width and depth whose feed-forward width meets the target; None if no width does."""
    by_rule = recipe.shape(width, depth)
    for model in (by_rule, *with_other_ffn(by_rule, target, size)):
        aspect_ratio = width / depth / aspect
        ffn_ratio = model.intermediate_size / by_rule.intermediate_size
        size_ratio = count_params(model, size) / target
        if abs(ffn_ratio - 1) <= FFN_SLACK and abs(size_ratio - 1) <= tolerance:
            misfit = sum(abs(math.log(ratio)) for ratio in (aspect_ratio, ffn_ratio, size_ratio))
            ffn_width = None if model is by_rule else model.intermediate_size
            return SolvedShape(width=width, depth=depth, model=model, intermediate_size=ffn_width, misfit=misfit)
    return None


def with_other_ffn(model: ModelConfig, target: float, size: Size) -> Iterator[ModelConfig]:
    """Shapes with the feed-forward width that brings N nearest to the target, one for each of `FFN_STEPS`."""
    ffn_width, n = model.intermediate_size, count_params(model, size)
    params_per_channel = count_params(dataclasses.replace(model, intermediate_size=ffn_width + 1), size) - n
    channels = (target - n) / params_per_channel  # to be added, since N is linear in the feed-forward width
    for step in FFN_STEPS:
        changed = ffn_width + round(channels / step) * step
        if changed > 0:
            yield dataclasses.replace(model, intermediate_size=changed)


def _widths(recipe: Recipe, target: float, aspect: float, size: Size) -> Iterator[int]:
    """Widths for which some allowed depth may meet the target. N grows with width and depth."""
    # The feed-forward width can change N by less than the factor 1 +- FFN_SLACK.
    min_params, max_params = target / (1 + FFN_SLACK), target / (1 - FFN_SLACK)

    def is_enough(width_steps: int) -> bool:  # whether the deepest shape has `min_params` parameters
        width = width_steps * recipe.width_step
        depths = _depths(recipe, width, aspect)
        return bool(depths) and count_params(recipe.shape(width, depths[-1]), size) >= min_params

    high = 1
    while not is_enough(high):
        high *= 2
    smallest = bisect_left(range(high), True, lo=high // 2 + 1, key=is_enough)
    for width in itertools.count(smallest * recipe.width_step, recipe.width_step):
        depths = _depths(recipe, width, aspect)
        if depths and count_params(recipe.shape(width, depths[0]), size) > max_params:  # of the shallowest shape
            return
        yield width


def _depths(recipe: Recipe, width: int, aspect: float) -> range:
    """Depths that keep the aspect of shapes of this width within `ASPECT_SLACK`."""
    step, middle = recipe.depth_step, width / aspect
    first = max(1, math.ceil(middle / ASPECT_SLACK / step))
    last = math.floor(middle * ASPECT_SLACK / step)
    return range(first * step, last * step + 1, step)


def _best_depths(recipe: Recipe, width: int, target: float, size: Size) -> set[int]:
    """The depths just below and above the depth that meets the target with the feed-forward width under the rule.

    Other depths are worse: their feed-forward width departs from the rule by more than their aspect improves.
    """
    step = recipe.depth_step
    first = count_params(recipe.shape(width, step), size)
    second = count_params(recipe.shape(width, 2 * step), size)
    exact = 1 + (target - first) / (second - first)  # the depth in steps that meets the target, as N is linear in depth
    return {num_steps * step for num_steps in (math.floor(exact), math.ceil(exact)) if num_steps >= 1}


def _nearest_sizes(recipe: Recipe, target: float, aspect: float, size: Size) -> list[int]:
    """The nearest N below and above the target, where each width has the depth that is best for the aspect."""
    below: int | None = None
    width = 0
    while True:
        width += recipe.width_step
        if depths := _depths(recipe, width, aspect):
            depth = min(depths, key=lambda depth: abs(math.log(width / depth / aspect)))
            n = count_params(recipe.shape(width, depth), size)
            if n > target:
                return [n] if below is None else [below, n]
            below = n
