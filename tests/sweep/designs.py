"""Configs, cells, results and tables of sweeps that are not trained."""

import json
import math
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.sweep.cells import Cell
from slm.sweep.design import check_design
from slm.sweep.grid import make_plan
from tests import composing
from tests.seeds import seeded

composed = partial(composing.composed, script="sweep")
settings = partial(composing.choice, "launcher")
SIZES = [1e6, 3e6, 1e7]
SLOPES = {"mobilellm": 0.10, "llama_wide": 0.10, "ssd": 0.15}
QUICK = ("analysis=quick", "analysis.laws=[power,power_floor]", "analysis.calibration=99", "logger=csv")
SMALL = shlex.split("""
    sweep.families=[mobilellm] sweep.grid.sizes=null sweep.grid.widths=[64] sweep.grid.depths=[4]
    sweep.budget.tokens=10000 sweep.overrides=[]
""")


def cells_of(*overrides: str) -> list[Cell]:
    return make_plan(check_design(composed(*overrides)["sweep"])).cells


def result(**changes: object) -> dict:
    """What train.py writes (DESIGN, section 3)."""
    made = {"schema": 1, "status": "completed", "name": "tiny-seed1", "family": "deep", "seed": 1}
    made |= {"shape": {"hidden_size": 128, "num_layers": 8}, "params_total": 2_099_328}
    made |= {"params_non_embedding": 1_575_040, "parametrization": "standard", "peak_lr": 0.004}
    made |= {"flops_per_token_6n": 12_595_968.0, "flops_per_token_exact": 14_161_920.0, "train_tokens": 1_000_000}
    made |= {"steps": 244, "batch_tokens": 4096, "sequence_length": 256}
    made |= {"schedule": {"warmup_fraction": 0.05, "name": "cosine", "final_fraction": 0.1}}
    made |= {"data": {"name": "pydocs", "fingerprint": "1234567890123456"}}
    made |= {"tokenizer": {"name": "bpe-4096", "fingerprint": "9d93fda1d2739ddc", "vocab_size": 4096}}
    val = {"loss": 4.0, "bits_per_byte": 1.8, "perplexity": math.exp(4.0), "tokens": 279_268, "bytes": 927_208}
    made |= {"val": val, "tokens_per_second": 22_249.2, "peak_memory_bytes": 981_307_392, "wall_seconds": 23.8}
    return made | {"device": "AMD EPYC (2 threads)", "precision": "bf16-mixed"} | changes


def write(folder: Path, content: object) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(content if isinstance(content, str) else json.dumps(content))


def result_of(cell: Cell, **changes: Any) -> dict:
    """What train.py would write if loss were 20 N^-alpha, and a parabola in log lr about 0.004."""
    rng = np.random.default_rng(int(cell.key[:8], 16))
    scatter = 0.002 * rng.standard_normal() + 0.02 * np.log(cell.lr / 0.004) ** 2
    loss = float(20 * cell.params_total ** -SLOPES[cell.family] * np.exp(scatter))
    shape = {"hidden_size": cell.width, "num_layers": cell.depth}
    facts = {"family": cell.family, "seed": cell.seed, "name": cell.name, "shape": shape, "peak_lr": cell.lr}
    facts |= {"params_total": cell.params_total, "params_non_embedding": cell.params_non_embedding}
    facts |= {"flops_per_token_exact": cell.flops / cell.tokens, "flops_per_token_6n": 6.0 * cell.params_total}
    val = {"loss": loss, "bits_per_byte": loss / 2, "perplexity": float(np.exp(loss)), "tokens": 1000, "bytes": 3000}
    facts |= {"train_tokens": cell.tokens, "parametrization": "completep", "val": val}
    return result(**facts | changes)


def table(families: dict[str, float], sizes: int = 6, seeds: int = 2, **columns: Any) -> pd.DataFrame:
    """Runs of families that follow L = 20 N^-alpha, with a scatter of 0.5%."""
    rng = np.random.default_rng(seeded(5))
    rows = [
        {"family": name, "params_total": round(n), "tokens": 1e9, "seed": seed}
        | {"loss": 20 * n**-alpha * np.exp(0.005 * rng.standard_normal())}
        for name, alpha in families.items()
        for n in np.geomspace(2e6, 6e7, sizes)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows).assign(**columns)


def runs(**changes: object) -> pd.DataFrame:
    """Two families, three sizes a little apart, two seeds; everything else is the same."""
    rows = [
        {"family": family, "params_total": size * (1.03 if family == "wide" else 1), "lr": 1e-3 * 1e6 / size, "seed": s}
        for family in ("deep", "wide")
        for size in SIZES
        for s in (1, 2)
    ]
    same = {"tokens": 1e8, "data_fingerprint": "d", "tokenizer_fingerprint": "t", "val_bytes": 1000}
    same |= {"precision": "bf16", "schedule": "cosine()", "sequence_length": 256, "batch_tokens": 4096}
    return pd.DataFrame(rows).assign(**same | changes)  # type: ignore[arg-type]


def what(found: dict, kind: str) -> list[str]:
    return [item["what"] for item in found[kind]]
