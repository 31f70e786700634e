"""Grids of a setting, such as learning rates, at one size and budget: they are found, and the best of each is kept."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy import integrate, stats

from slm.runtime.words import shortlist
from slm.scaling.tables.columns import CELL, SIZES, TARGETS, Columns, groups

TUNED = (
    *("lr", "learning_rate", "peak_lr", "max_lr", "batch_tokens", "batch_size", "batch_seqs", "global_batch_size"),
    *("weight_decay", "wd", "decay", "warmup", "warmup_steps", "warmup_fraction", "decay_steps", "decay_fraction"),
    *("beta1", "beta2", "adam_beta1", "adam_beta2", "momentum", "dropout", "init_std", "grad_clip", "z_loss"),
)
"""Columns of settings that people try several values of, to keep the best."""
NO_SETTING = (*SIZES, *TARGETS, "family", "tokens", "flops", "seed", "run_id", "trunk", "status", "budget", "isoflop")


def fixed_beside(names: Sequence[str]) -> list[str]:
    """The columns that rows must agree in to differ in `names` alone."""
    fixed = [name for name in dict.fromkeys((*CELL, *TUNED)) if name not in names]
    if any("batch" in name for name in names):  # the other ways to write the batch, and what follows from it
        fixed = [name for name in fixed if "batch" not in name and not name.endswith("steps")]
    return fixed


def note_grids(frame: pd.DataFrame, columns: Columns) -> list[str]:
    """A sentence if most sizes and budgets have runs with several values of a setting, with the offer of the best."""
    tried = [name for name in TUNED if name in frame and pd.api.types.is_numeric_dtype(frame[name])]
    group = groups(frame, fixed_beside(tried))
    counts = {name: frame[name].groupby(group).nunique() for name in tried}
    grids = [name for name, values in counts.items() if 2 * (values > 1).sum() > len(values)]
    if not grids:
        return []
    most = [f"{int(counts[name].max())} values of {columns.own.get(name, name)}" for name in grids]
    given = grids[0] if len(grids) == 1 else f"[{','.join(grids)}]"
    k = int(groups(frame, grids).groupby(group).nunique().max())
    return [
        f"Runs of one size and budget differ in a setting (up to {shortlist(most, 3)}), so laws describe their "
        f"average: best_of={given} keeps the best of each, which the luck of {k} tries makes low by up to "
        f"{luck(k):.2f} times the scatter between seeds."
    ]


def best_of(frame: pd.DataFrame, names: Sequence[str], target: str, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Of the rows that differ in the columns `names` alone, those of the lowest result, on average over seeds.

    Of runs with checkpoints, the last rows are compared and all rows of the best run kept. Raises `ValueError` for a
    name that is no column, or no setting.
    """
    ours = {own: name for name, own in columns.own.items()}
    names = [ours.get(name, name) for name in names]
    for name in names:
        if name not in frame:
            raise ValueError(
                f"best_of={name}: {columns.table} has no such column; it has {shortlist(frame.columns, 12)}"
            )
        if name in NO_SETTING:
            raise ValueError(f"best_of={name} must be a setting of which several values were tried, such as lr")
    if not names:
        return frame
    run = pd.Series([f"row{row}" for row in frame.index], frame.index, dtype=object)
    run = frame["run_id"].fillna(run) if "run_id" in frame else run
    order = frame.sort_values("tokens", kind="stable") if "tokens" in frame else frame
    last = frame.loc[order.index[~run[order.index].duplicated(keep="last")]].sort_index()
    group, point = groups(last, fixed_beside(names)), groups(last, names)
    means = last[target].groupby([group, point]).mean()
    tried, shown_names = means.groupby(level=0).size(), ",".join(names)
    most = int(tried.max())
    if most == 1:
        notes.append(f"best_of={shown_names} had nothing to choose from: no rows differ in that alone.")
        return frame
    best = set(means.groupby(level=0).idxmin())
    kept = frame[run.isin(run[last.index[[pair in best for pair in zip(group, point, strict=True)]]])]
    counts, gain = f"{most}", ""
    if tried.nunique() > 1:
        by_family = tried.groupby(last["family"].groupby(group).first(), sort=False)
        spans = {name: dict.fromkeys((str(count.min()), str(count.max()))) for name, count in by_family}
        counts = shortlist((f"{name} {' to '.join(span)}" for name, span in spans.items()), 4)
        gain = ", and families that tried more values gain more"
    notes += [
        f"best_of={shown_names} kept {len(kept)} of {len(frame)} rows, the best at each family, size and budget "
        f"({counts} tried).",
        f"The best of several noisy runs is low by luck: by up to {luck(most):.2f} times the scatter between seeds for "
        f"the best of {most}{gain}.",
    ]
    return kept


def luck(tried: int) -> float:
    """By how many standard deviations the lowest of `tried` independent normal values lies below their mean."""
    norm = stats.norm
    return float(integrate.quad(lambda x: x * tried * norm.pdf(x) * norm.cdf(x) ** (tried - 1), -10, 10)[0])
