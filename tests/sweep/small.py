"""Real sweeps as a user starts them, of cells so small that starting one takes longer than training it."""

import shlex
import sys
from pathlib import Path

from tests.running import ROOT

OVERRIDES = shlex.split("""
    data=local tokenizer=bytes model.vocab_size=260 model.head_dim=16 train.sequence_length=32
    train.batch_tokens=256 train.eval_tokens=512 train.sample_tokens=4 checkpoint.every_steps=10 trainer=cpu
    trainer.compile=false
""")
SWEEP = shlex.split("""
    sweep.families=[llama_wide,ssd] sweep.grid.sizes=null sweep.grid.shapes=[32x2,64x2,96x2]
    sweep.budget.tokens=20_480 logger=csv analysis=quick analysis.laws=[power] analysis.calibration=0
""")


def sweep_command(folder: Path, text_file: Path, cache_dir: Path, *changes: str) -> list[str]:
    """The command line of a sweep of six cells into `folder`; `changes` win."""
    overrides = [*OVERRIDES, f"data.paths={text_file}", f"cache_dir={cache_dir}"]
    given = ["sweep.overrides=[" + ",".join(f"'{item}'" for item in overrides) + "]", f"output_dir={folder}"]
    return [sys.executable, str(ROOT / "sweep.py"), *SWEEP, *given, *changes]
