"""Settings of an evaluation as evaluate.py composes them, small enough for tests."""

import shlex
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from slm.evaluation.config import check_settings, register
from tests.running import ROOT

SMALL = shlex.split("""
    logger=csv device=cpu batch_tokens=256 perplexity.sliding.max_length=32 perplexity.non_overlapping.max_length=32
    speed.prompt_tokens=8 speed.new_tokens=4 speed.repetitions=2 speed.compile=false
""")


def asked(*overrides: str) -> dict[str, Any]:
    """Checked settings of a command line alone."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", overrides=list(overrides))
    return check_settings(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def small(folder: Path, text: Path, *overrides: str) -> dict[str, Any]:
    """The same, of small windows over a text file; later `overrides` win."""
    places = [f"output_dir={folder / 'out'}", f"cache_dir={folder / 'cache'}", "data=local", f"data.paths={text}"]
    chosen = {item.partition("=")[0]: item for item in [*SMALL, *places, *overrides]}
    return asked(*chosen.values())
