"""`train`: the whole of one run, from its plan to a finished run directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from slm.checkpoints import export_model
from slm.checkpoints.weights import weights_to_export
from slm.data import Corpus, prepare
from slm.data.tokenizer import LOSSY_NOTE
from slm.model.counts import num_params
from slm.runtime.machine import reset_peak_memory
from slm.runtime.progress import Progress
from slm.tracking import Trackers, open_trackers
from slm.training.announce import ending_lines, speed_lines
from slm.training.checkpointing import LAST, RandomState, newest_intact, step_of
from slm.training.data_module import TokenData
from slm.training.interrupt import Interrupt
from slm.training.journal import COLUMNS, Journal
from slm.training.module import LanguageModel
from slm.training.peak import matmul_peak
from slm.training.plan import Plan
from slm.training.probe import measure_speed
from slm.training.result import make_result
from slm.training.setup import Run, say
from slm.training.trainer import make_trainer
from slm.training.world import RUN_DIR, is_first_process

PASSES_WORTH_A_MEASUREMENT = 300
"""Of a run that is not compiled: measuring takes three. A run that is compiled is, so that its clock starts after."""


def train(run: Run) -> dict[str, Any]:
    """Train what `set_up` has planned; returns what `result.json` holds (nothing for a dry run).

    An `output_dir` that holds the same run is continued from its newest whole checkpoint; one whose run is completed is
    left as it is. Raises `ValueError`, before any work, for what a user can get wrong.
    """
    settings = run.settings
    torch._dynamo.reset()  # a run before this one in the same process must not use up the compiler's limits
    reset_peak_memory()
    if settings["dry_run"]:
        _measure(run, _module(run), run.branch.step if run.branch else 0)
        return {}
    done = run.folder.result()
    if done and done["status"] == "completed":
        say(f"completed already: {run.folder.path}; choose another output_dir to train again")
        return done
    corpus = prepare(settings["data"], settings["tokenizer"], cache_dir=run.cache_dir)
    _check_corpus(corpus, run.plan)
    fingerprints = {"data": corpus.fingerprint, "tokenizer": corpus.tokenizer.fingerprint}
    if run.branch is not None:
        run.branch.check_corpus(fingerprints)
    try:
        if not is_first_process():
            return _fit(run, corpus)
        with run.folder.claimed(settings, {**fingerprints, "left_out": corpus.left_out}):
            return _fit(run, corpus)
    except (MemoryError, RuntimeError) as error:  # on a CPU torch has no error of its own for it
        exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        if not exhausted:
            raise
        raise ValueError(
            f"out of memory with trainer.micro_batch_tokens={run.hardware.micro_batch_tokens}: lower it (a step then "
            "takes more passes, and learns the same), or train a smaller model (weights, gradients and optimizer of "
            f"this one take {run.plan.state_bytes / 1e9:.2g} GB)"
        ) from error


def _fit(run: Run, corpus: Corpus) -> dict[str, Any]:
    module = _module(run, corpus.tokenizer.separator_id if run.plan.document_masking else None)
    checkpoint, branched_from = newest_intact(run.folder.checkpoints), None
    start_step = 0
    if checkpoint is not None:
        start_step = step_of(checkpoint)
        say(f"continuing   from step {start_step} of {run.plan.steps} ({checkpoint})")
    elif run.branch is not None:
        checkpoint, start_step = run.branch.checkpoint, run.branch.step
        branched_from = {"name": run.branch.name, "step": start_step}
        if is_first_process():
            run.branch.copy_metrics(run.folder)
    peak = _measure(run, module, start_step)
    trackers = _trackers(run, start_step) if is_first_process() else None
    result: dict[str, Any] = {}
    progress = Progress("step", run.plan.steps, file=sys.stdout, shown=trackers is not None)
    try:
        with Interrupt() as interrupt:
            journal = Journal(
                folder=run.folder.checkpoints,
                corpus=corpus,
                train=run.settings["train"],
                checkpoint=run.settings["checkpoint"],
                max_skipped_in_a_row=run.settings["optim"]["max_skipped_in_a_row"],
                flops_per_second_peak=peak,
                interrupt=interrupt,
                progress=progress,
                branched_from=branched_from,
                trackers=trackers,
            )
            trainer = make_trainer(run.plan, run.hardware, folder=run.folder.path, callbacks=[journal, RandomState()])
            data = TokenData(
                corpus,
                run.plan,
                seed=run.settings["seed"],
                start_step=start_step,
                num_workers=run.hardware.num_workers,
            )
            if run.hardware.world_size > 1:
                os.environ[RUN_DIR] = str(run.folder.path)  # for the processes that Lightning starts from here
            try:
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            except SystemExit as error:  # what Lightning makes of a second Ctrl-C
                raise KeyboardInterrupt from error
        progress.end()
        result = make_result(
            run.settings, run.plan, run.hardware, corpus, journal, step=trainer.global_step, signal=interrupt.received
        )
        if trackers is not None:
            _finish(run, corpus, journal, result)
    finally:
        progress.end()
        if trackers is not None:
            trackers.finish(result, succeeded=bool(result) and result["status"] != "diverged")
    if dist.is_initialized():
        dist.barrier()  # Lightning kills the first process, still writing, if another one ends before it
    return result


def _finish(run: Run, corpus: Corpus, journal: Journal, result: dict[str, Any]) -> None:
    """Export the trained model, then write result.json: once that is there, so is everything else."""
    if result["status"] == "completed":
        state = torch.load(run.folder.checkpoints / LAST, map_location="cpu", weights_only=True, mmap=True)[
            "state_dict"
        ]
        export_model(run.folder.model, run.plan.model, weights_to_export(state), corpus.tokenizer)
    run.folder.write_result(result)
    sample = run.settings["train"]["sample_prompt"] + journal.sample if journal.sample else ""
    say(*ending_lines(result, run.folder.path, sample))


def _check_corpus(corpus: Corpus, plan: Plan) -> None:
    if corpus.tokenizer.vocab_size > plan.model.vocab_size:
        raise ValueError(
            f"model.vocab_size={plan.model.vocab_size} is smaller than the tokenizer's {corpus.tokenizer.vocab_size} "
            f"ids: set model.vocab_size={corpus.tokenizer.vocab_size} or more"
        )
    windows = corpus.train.num_windows(plan.sequence_length)
    if windows == 0 or corpus.val.num_tokens < 2:
        raise ValueError(
            f"data={corpus.name} has {corpus.train.num_tokens} training and {corpus.val.num_tokens} validation tokens, "
            f"too few for one sequence of train.sequence_length={plan.sequence_length}: give more text"
        )
    epochs = plan.steps * plan.batch_size / windows
    again = f", so each token is seen {epochs:.1f} times" if epochs > 1.5 else ""
    used = corpus.tokenizer.vocab_size
    padded = f" of the model's {plan.model.vocab_size:,}" if used < plan.model.vocab_size else ""
    say(
        f"data         {corpus.name} {corpus.fingerprint}: {corpus.train.num_tokens:,} training tokens{again}; "
        f"{corpus.val.num_tokens:,} for validation; {used:,} ids{padded}",
        *(f"             {note}" for note in corpus.notes),
    )
    if not corpus.keeps_text:
        say(f"tokenizer    {LOSSY_NOTE}")


def _module(run: Run, separator: int | None = None) -> LanguageModel:
    module = LanguageModel(
        run.plan,
        optim=run.settings["optim"],
        schedule=run.settings["schedule"],
        seed=run.settings["seed"],
        separator=separator,
    )
    if run.hardware.compile:
        module.decoder.compile_blocks()
    if run.hardware.accelerator == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, where the run's precision is float32
    return module


def _measure(run: Run, module: LanguageModel, start_step: int) -> float:
    """Say how fast the run will be, going by this process's device. Returns the matmul peak of a device."""
    peak, source = matmul_peak(run.hardware, run.cache_dir)
    passes = (run.plan.steps - start_step) * run.plan.accumulation
    wanted = run.settings["dry_run"] or run.hardware.compile or passes >= PASSES_WORTH_A_MEASUREMENT
    if wanted and is_first_process():
        # Processes on one CPU share its cores; GPUs add up.
        devices = run.hardware.world_size if run.hardware.accelerator == "cuda" else 1
        say("speed        measuring ...")
        speed, memory = measure_speed(module.decoder, run.plan, run.hardware)
        say(*speed_lines(run.plan, speed * devices, peak * devices, source, memory, start_step=start_step))
    return peak


def _trackers(run: Run, resume_step: int) -> Trackers:
    shape = run.plan.model
    facts = {
        "params_total": num_params(shape),
        "params_non_embedding": num_params(shape, non_embedding=True),
        "train_tokens": run.plan.train_tokens,
        "steps": run.plan.steps,
    }
    return open_trackers(
        run.folder.path,
        name=run.settings["name"],
        config={**run.settings, **facts},
        settings=run.settings["logger"],
        columns=COLUMNS,
        resume_step=resume_step,
    )


def exit_code(result: Mapping[str, Any]) -> int:
    """0 completed, 2 diverged, 128 + the signal where a signal interrupted the run.

    Always 0 in processes that Lightning started: it kills the first one, still writing, if another one fails.
    """
    if not is_first_process():
        return 0
    if result.get("status") == "diverged":
        return 2
    if result.get("status") == "interrupted":
        return 128 + result["signal"]
    return 0
