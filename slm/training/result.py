"""The contents of `result.json`, which describes a finished run, and the last lines that a run prints."""

import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm.data.corpus import Corpus
from slm.model.counts import flops_per_token, num_params
from slm.runtime.machine import peak_memory_bytes
from slm.runtime.system import git_commit
from slm.runtime.words import duration
from slm.training.journal import Journal
from slm.training.plan import Plan
from slm.training.speed import datasheet_peak
from slm.training.trainer import epochs_by_source
from slm.training.validation import Score

SCHEMA = 1  # version of the contents of result.json


def make_result(plan: Plan, corpus: Corpus, journal: Journal, *, step: int, signal: int | None) -> dict[str, Any]:
    """Return the contents of result.json for a run that stopped at optimizer step `step`.

    Losses are in nats per token, and `flops_*` are training FLOPs per token. If the run completed, `val` is its final
    validation on `train.val_tokens` tokens (null: the whole set); otherwise it is the newest validation. `signal` is
    the number of the signal that the run received, if any. A branch is a run that started at a checkpoint of another
    run, its trunk: its counts include the trunk's steps before that checkpoint; only `tokens_trained` leaves them out.
    """
    tokens = step * plan.batch_tokens
    trunk_tokens = journal.branched_from["step"] * plan.batch_tokens if journal.branched_from else 0
    val = _val(journal.val) if journal.val else None
    return {
        "schema": SCHEMA,
        "status": journal.outcome(step),
        "signal": signal,
        "name": plan.settings["name"],
        "family": plan.settings["model"].get("family"),
        "seed": plan.settings["seed"],
        "shape": plan.model.to_dict(),
        **parameter_counts(plan),
        "flops_per_token_6n": flops_per_token(plan.model, plan.sequence_length, convention="6n"),
        "flops_per_token_exact": plan.token_flops,
        "train_tokens": tokens,
        "tokens_trained": tokens - trunk_tokens,
        **({} if journal.scored_tokens is None else {"scored_tokens": journal.scored_tokens}),
        "branched_from": journal.branched_from,
        "distill": plan.teacher.record(plan.sequence_length) if plan.teacher else None,
        "init_from": plan.initial,
        "quantize": plan.settings.get("quantize"),
        "steps": step,
        "planned_steps": plan.steps,
        "skipped_steps": journal.skipped_steps,
        **_recipe(plan),
        "data": _data(plan, corpus, step),
        "tokenizer": {
            "name": corpus.tokenizer.name,
            "fingerprint": corpus.tokenizer.fingerprint,
            "vocab_size": corpus.tokenizer.vocab_size,
            "keeps_text": corpus.keeps_text,  # whether decoding gives back the text exactly
        },
        "val": val,
        **({"tasks": journal.task_results} if journal.tasks else {}),
        "train_loss_final": journal.train_loss,
        **_speed(plan, journal, tokens),
        "peak_memory_bytes": peak_memory_bytes(),
        "wall_seconds": journal.total_seconds(),
        "device": plan.hardware.device_name,
        "precision": plan.hardware.precision,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _val(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics and sizes of a validation with the `fields` of its `Score`, and those of each source."""
    score = Score(**fields)
    by_source = {name: _val(source) for name, source in score.by_source.items()}  # type: ignore[arg-type]
    facts = {**score.metrics(), "tokens": score.tokens, "bytes": score.bytes}
    return {**facts, "by_source": by_source} if by_source else facts


def _data(plan: Plan, corpus: Corpus, step: int) -> dict[str, Any]:
    """Return what the run was trained on, with the number of times that it has seen the text of its sources."""
    epochs = epochs_by_source(plan, corpus, step)
    facts = {"name": corpus.name, "fingerprint": corpus.fingerprint, "epochs": max(epochs.values())}
    if corpus.mixture is None:
        return facts
    sources = {
        name: {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "share": corpus.mixture.shares[name],
            "epochs": epochs[name],
        }
        for name, source in corpus.sources.items()
    }
    return {**facts, "sources": sources}


def _recipe(plan: Plan) -> dict[str, Any]:
    optim, parametrization = plan.settings["optim"], plan.settings["parametrization"]
    return {
        "batch_tokens": plan.batch_tokens,
        "sequence_length": plan.sequence_length,
        "document_masking": plan.document_masking,
        "peak_lr": optim["lr"],
        "parametrization": parametrization["name"],
        "base_shape": {key: value for key, value in parametrization.items() if key != "name"},
        "optimizer": optim["name"],
        "ema_decay": optim["ema_decay"],
        "schedule": plan.settings["schedule"],
    }


def _speed(plan: Plan, journal: Journal, tokens: int) -> dict[str, float | None]:
    """Return tokens per second and MFU, None if unknown, of `tokens` trained in the journal's seconds."""
    if not journal.train_seconds:
        return dict.fromkeys(("tokens_per_second", "mfu", "mfu_datasheet"))
    tokens_per_second = tokens / journal.train_seconds
    device_peak = datasheet_peak(plan.hardware)
    mfu_datasheet = None
    if device_peak is not None:
        mfu_datasheet = tokens_per_second * plan.token_flops / (device_peak * plan.hardware.world_size)
    mfu = journal.mfu(tokens_per_second)
    return {"tokens_per_second": tokens_per_second, "mfu": mfu, "mfu_datasheet": mfu_datasheet}


def parameter_counts(plan: Plan) -> dict[str, int]:
    """Return the numbers of parameters with and without the embeddings."""
    return {"params_total": num_params(plan.model), "params_non_embedding": num_params(plan.model, non_embedding=True)}


def versions() -> dict[str, str]:
    """Return the versions of the packages on which a run's numbers depend."""
    names = ("slm", "torch", "lightning", "tokenizers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def ending_lines(result: Mapping[str, Any], folder: Path, sample: str, *, is_multirun: bool = False) -> list[str]:
    """Return the lines that tell the outcome of the run; `sample` is a generated text, or empty."""
    lines = [f"{result['status']} after {duration(result['wall_seconds'])}: {folder}"]
    if val := result["val"]:
        lines.append(
            f"validation   loss {val['loss']:.4f} nats/token, {val['bits_per_byte']:.4f} bits/byte, "
            f"perplexity {val['perplexity']:.2f} on {val['tokens']:,} tokens"
        )
    for name, task in result.get("tasks", {}).items():
        lines.append(
            f"tasks        {name}: {task['metric']} {task['value']:.3f} (chance {task['chance']:.3f}), right answer "
            f"{task['also']['bits_per_byte']['value']:.4f} bits/byte, on {task['n']:,} questions"
        )
    if sample:
        lines.append(f"sample       {sample}")
    if result["status"] == "interrupted":
        command = f"the same command with output_dir={shlex.quote(str(folder))}"
        if is_multirun:  # whose command makes directories of its own
            where = shlex.quote(str(folder.resolve()))
            command = f"python train.py -cp {where} -cn config output_dir={where}"
        lines.append(f"continue     {command}")
    if result["status"] == "diverged":
        lines.append("hint         a lower optim.lr or a longer schedule.warmup_fraction usually helps")
    return lines
