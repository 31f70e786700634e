"""The seed of all random inputs of the tests: SLM_TEST_SEED, a number (0 unless given) or `random`, which draws one.

pytest prints it. With 0, hypothesis tries the same examples each time, so that a change is not refused for a case that
it did not touch.
"""

import os
import secrets

import numpy as np

if os.environ.get("SLM_TEST_SEED") == "random":
    os.environ["SLM_TEST_SEED"] = str(secrets.randbelow(10_000))  # which the workers of xdist inherit
SEED = int(os.environ.get("SLM_TEST_SEED", "0"))


def seeded(number: int = 0) -> int:
    """A seed for each `number`: that number itself, unless another SLM_TEST_SEED is asked for."""
    return number + 1_000_003 * SEED


def generator(number: int = 0) -> np.random.Generator:
    """numpy's random numbers from the seed of that number."""
    return np.random.default_rng(seeded(number))
