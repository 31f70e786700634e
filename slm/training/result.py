"""`result.json`: what other pieces read of a run (DESIGN, section 3)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm.data import Corpus
from slm.model.counts import flops_per_token, num_params
from slm.runtime.machine import peak_memory_bytes
from slm.training.hardware import Hardware
from slm.training.journal import Journal
from slm.training.plan import Plan
from slm.training.validation import Score

SCHEMA = 1


def make_result(
    settings: Mapping[str, Any],
    plan: Plan,
    hardware: Hardware,
    corpus: Corpus,
    journal: Journal,
    *,
    step: int,
    signal: int | None,
) -> dict[str, Any]:
    """Everything a reader of the run needs, for a run that stopped at optimizer step `step`.

    Losses are nats a token, `flops_*` training FLOPs a token, `val` that of `train.val_tokens` (or of the whole
    validation set) if the run completed and the newest validation otherwise, `signal` the number of the signal that the
    run received, if any. A run that was branched from another counts from that one's start, but for `tokens_trained`,
    which are those of its own steps.
    """
    tokens = step * plan.batch_tokens
    exact = flops_per_token(plan.model, plan.sequence_length)
    rate = tokens / journal.train_seconds if journal.train_seconds else None
    val = Score(**journal.val) if journal.val else None
    return {
        "schema": SCHEMA,
        "status": journal.outcome(step),
        "signal": signal,
        "name": settings["name"],
        "family": settings["model"].get("family"),
        "seed": settings["seed"],
        "shape": plan.model.to_dict(),
        "params_total": num_params(plan.model),
        "params_non_embedding": num_params(plan.model, non_embedding=True),
        "flops_per_token_6n": flops_per_token(plan.model, plan.sequence_length, convention="6n"),
        "flops_per_token_exact": exact,
        "train_tokens": tokens,
        "tokens_trained": tokens - (journal.branched_from["step"] * plan.batch_tokens if journal.branched_from else 0),
        "branched_from": journal.branched_from,
        "steps": step,
        "planned_steps": plan.steps,
        "skipped_steps": journal.skipped_steps,
        "batch_tokens": plan.batch_tokens,
        "sequence_length": plan.sequence_length,
        "document_masking": plan.document_masking,
        "peak_lr": settings["optim"]["lr"],
        "parametrization": settings["parametrization"]["name"],
        "base_shape": {key: value for key, value in settings["parametrization"].items() if key != "name"},
        "optimizer": settings["optim"]["name"],
        "ema_decay": settings["optim"]["ema_decay"],
        "schedule": settings["schedule"],
        "data": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "tokenizer": {
            "name": corpus.tokenizer.name,
            "fingerprint": corpus.tokenizer.fingerprint,
            "vocab_size": corpus.tokenizer.vocab_size,
            "keeps_text": corpus.keeps_text,
        },
        "val": val
        and {
            "loss": val.loss,
            "bits_per_byte": val.bits_per_byte,
            "perplexity": val.perplexity,
            "tokens": val.tokens,
            "bytes": val.bytes,
        },
        "train_loss_final": journal.train_loss,
        "tokens_per_second": rate,
        "mfu": rate and rate * exact / (journal.flops_per_second_peak * hardware.world_size),
        "peak_memory_bytes": peak_memory_bytes(),
        "wall_seconds": journal.total_seconds(),
        "device": hardware.device_name,
        "precision": hardware.precision,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    names = ("slm", "torch", "lightning", "tokenizers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def git_commit() -> str | None:
    """Commit of the source tree, marked `-dirty` if it has changes; None outside a checkout."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
