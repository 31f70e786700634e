"""Train one run: from its plan to a finished run directory."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slm.checkpoints import export_model
from slm.checkpoints.weights import weights_to_export
from slm.composition.resolvers import in_multirun
from slm.data.cache import digest
from slm.data.corpus import Corpus, prepare
from slm.data.packing import ConversationStream
from slm.data.tokenizer import LOSSY_NOTE
from slm.runtime.files import write_atomically
from slm.runtime.machine import explain_compiler_error, reset_peak_memory
from slm.runtime.progress import Progress
from slm.runtime.system import keep_freed_memory
from slm.tracking import Tracker, open_trackers
from slm.training.checkpointing import LAST, checkpoint_step, newest_intact
from slm.training.initial import load_initial, tokenizer_source
from slm.training.journal import COLUMNS, SCORED_COLUMNS, Journal
from slm.training.module import LOSSES, LanguageModel
from slm.training.plan import Plan
from slm.training.process import Interrupt, Stop, is_first_process, say
from slm.training.result import ending_lines, make_result, parameter_counts
from slm.training.speed import RankSpeeds, measure_run
from slm.training.tasks import EvalTask, column_names, encode_tasks
from slm.training.trainer import Batches, epochs_by_source, make_trainer
from slm.training.validation import source_columns

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
"""What torch's plain RuntimeErrors say if memory runs out: on a CPU, on a CPU under Windows, on MPS."""


def train(plan: Plan) -> dict[str, Any]:
    """Train as planned by `set_up`. Returns the contents of `result.json`, or {} after a dry run.

    If `output_dir` holds the same run, it is continued from its newest intact checkpoint; a completed run is left
    unchanged. Raises `ValueError` if the run cannot start with this corpus or from this run directory.
    """
    if plan.hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first matmul
    torch.use_deterministic_algorithms(plan.hardware.deterministic)
    torch._dynamo.reset()  # an earlier run in this process must not use up the compiler's limits
    reset_peak_memory()
    if plan.hardware.accelerator == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, if the run's precision is float32
    else:
        keep_freed_memory()
    if plan.settings["dry_run"]:
        if is_first_process():
            start_step = plan.branch.step if plan.branch else 0
            with _explain_failures(plan):
                module = LanguageModel(plan)
                measure_run(plan, module.decoder, module.teacher, start_step)
        return {}
    earlier_result = plan.folder.result()
    if earlier_result.get("status") == "completed":
        say(f"completed already: {plan.folder.path}; choose another output_dir to train again")
        return earlier_result
    corpus = prepare(plan.settings["data"], tokenizer_source(plan.settings), cache_dir=plan.cache_dir)
    check_corpus(plan, corpus)
    tasks = encode_tasks(plan, corpus.tokenizer)
    say(*(f"tasks        {task.note}" for task in tasks if task.note))
    fingerprints = {"data": corpus.fingerprint, "tokenizer": corpus.tokenizer.fingerprint}
    if plan.teacher is not None:
        plan.teacher.check_tokenizer(corpus.tokenizer.fingerprint)
        fingerprints["teacher"] = plan.teacher.provenance.fingerprint
    if plan.branch is not None:
        plan.branch.check_corpus(fingerprints)
    corpus_facts = {**fingerprints, "left_out": corpus.left_out}  # `left_out`: numbers of documents, by reason
    if tasks:
        corpus_facts["tasks"] = digest([[task.name, list(task.records)] for task in tasks])
    if plan.initial is not None:
        corpus_facts["init_from"] = plan.initial
    if corpus.holds_conversations:
        corpus_facts["documents"] = corpus.documents_fingerprint
    if corpus.sources:
        corpus_facts["sources"] = {name: source.fingerprint for name, source in corpus.sources.items()}
    lock = plan.folder.lock(plan.settings, corpus_facts) if is_first_process() else nullcontext()
    with _explain_failures(plan), lock:
        result = _fit(plan, corpus, tasks)
    if dist.is_initialized():
        dist.barrier()  # if another process ended first, Lightning would kill the first process while it is writing
    return result


def _fit(plan: Plan, corpus: Corpus, tasks: list[EvalTask]) -> dict[str, Any]:
    checkpoint, start_step, branched_from = _find_start(plan)
    separator = corpus.tokenizer.separator_id if plan.document_masking else None
    module = LanguageModel(plan, separator, counts_scored=corpus.holds_conversations)
    if plan.initial is not None and checkpoint is None:
        say(*load_initial(module.decoder, plan.settings, corpus.tokenizer))
    peak_flops_per_second = 0.0  # a placeholder if there are several processes: `RankSpeeds` sets the journal's value
    if plan.hardware.world_size == 1:
        plan, peak_flops_per_second = measure_run(plan, module.decoder, module.teacher, start_step)
        module.plan = plan
    trackers: list[Tracker] = []
    if is_first_process():
        config = {**plan.settings, **parameter_counts(plan), "train_tokens": plan.train_tokens, "steps": plan.steps}
        columns = [*COLUMNS, *source_columns(corpus), *(SCORED_COLUMNS if corpus.holds_conversations else ())]
        columns += [*(LOSSES[1:] if plan.teacher else ()), *column_names(plan.settings["train"])]
        trackers = open_trackers(plan.folder.path, config, columns=columns, resume_step=start_step)
    progress = Progress("step", plan.steps, file=sys.stdout, shown=is_first_process())
    result: dict[str, Any] = {}  # stays empty if the run fails
    try:
        with Interrupt() as interrupt:
            journal = Journal(plan, corpus, trackers, progress, interrupt, peak_flops_per_second, tasks, branched_from)
            rank_speeds = [RankSpeeds(journal, start_step)] if plan.hardware.world_size > 1 else []
            trainer = make_trainer(plan, callbacks=[journal, *rank_speeds])
            try:
                batches = Batches(plan, corpus, start_step, rank=trainer.global_rank)
                trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
            except Stop:
                pass  # the journal has saved a checkpoint
            except SystemExit as error:  # raised by Lightning at a second Ctrl-C
                raise KeyboardInterrupt from error
        progress.end()  # before the lines below are printed
        result = make_result(plan, corpus, journal, step=trainer.global_step, signal=journal.signal)
        if is_first_process():
            if result["status"] == "completed":
                _export(plan, corpus)
            plan.folder.write_result(result)  # the last file of a run: once it is there, all others are complete
            sample = (plan.settings["train"]["sample_prompt"] + journal.sample) if journal.sample else ""
            say(*ending_lines(result, plan.folder.path, sample, is_multirun=in_multirun()))
    finally:
        progress.end()
        for tracker in trackers:
            tracker.finish(result, succeeded=bool(result) and result["status"] != "diverged")
    return result


def _find_start(plan: Plan) -> tuple[Path | None, int, dict[str, Any] | None]:
    """Return the checkpoint to start from (None for step 0), its step, and `Journal.branched_from` of a new branch."""
    checkpoint = newest_intact(plan.folder.checkpoints)
    if checkpoint is not None:
        step = checkpoint_step(checkpoint)
        say(f"continuing   from step {step} of {plan.steps} ({checkpoint})")
        return checkpoint, step, None
    if plan.branch is None:
        return None, 0, None
    if is_first_process():
        # The branch begins with the trunk's rows. The tracker drops those after the checkpoint's step.
        write_atomically(plan.folder.metrics, plan.branch.trunk.metrics.read_bytes())
    return plan.branch.checkpoint, plan.branch.step, {"name": plan.branch.trunk_name, "step": plan.branch.step}


def _export(plan: Plan, corpus: Corpus) -> None:
    """Write `model/` from the last checkpoint, because a process may hold only a shard of the weights."""
    checkpoint = torch.load(plan.folder.checkpoints / LAST, map_location="cpu", weights_only=True, mmap=True)
    export_model(plan.folder.model, plan.model, weights_to_export(checkpoint["state_dict"]), corpus.tokenizer)


def check_corpus(plan: Plan, corpus: Corpus) -> None:
    """Print the size of the corpus. Raises `ValueError` if it is too small or its tokenizer has too many ids."""
    num_ids, vocab_size = corpus.tokenizer.vocab_size, plan.model.vocab_size
    if num_ids > vocab_size:
        raise ValueError(f"model.vocab_size={vocab_size} must be at least {num_ids}, the number of the tokenizer's ids")
    key = "data.sources." if corpus.sources else "data="
    notes = list(corpus.notes)
    for name, part in (corpus.sources or {corpus.name: corpus}).items():
        notes += _conversation_notes(plan, part)
        if part.train.num_windows(plan.sequence_length) == 0 or part.val.num_tokens < 2:
            raise ValueError(
                f"{key}{name} has {part.train.num_tokens} training and {part.val.num_tokens} validation tokens, "
                f"too few for one sequence of train.sequence_length={plan.sequence_length}: give more text"
            )
    vocab_text = f"; {num_ids:,} ids" + (f" of the model's {vocab_size:,}" if num_ids < vocab_size else "")
    say(*_size_lines(plan, corpus, vocab_text), *(f"             {note}" for note in notes))
    if not corpus.keeps_text:
        say(f"tokenizer    {LOSSY_NOTE}")


def _conversation_notes(plan: Plan, corpus: Corpus) -> Iterator[str]:
    """Yield what is scored in each split of conversations. Raises `ValueError` for a split with nothing to score."""
    for split, stream in (("training", corpus.train), ("validation", corpus.val)):
        if not isinstance(stream, ConversationStream):
            continue
        if stream.num_windows(plan.sequence_length) == 0:
            raise ValueError(
                f"data={corpus.name}: in no {split} conversation does the assistant say something within the first "
                f"{plan.sequence_length + 1} tokens: raise train.sequence_length"
            )
        yield f"{split}: {stream.note(plan.sequence_length)}"


def _size_lines(plan: Plan, corpus: Corpus, vocab_text: str) -> list[str]:
    """Return the lines that tell the tokens of a corpus, and of each source of a mix with its share of the run."""
    epochs = epochs_by_source(plan, corpus, plan.steps)

    def sizes(part: Corpus, times: float) -> str:
        epochs_text = f", so each token is seen {times:.1f} times" if times > 1.5 else ""
        tokens = f"{part.train.num_tokens:,} training tokens{epochs_text}; {part.val.num_tokens:,} for validation"
        return f"{part.fingerprint}: {tokens}"

    lines = [f"data         {corpus.name} {sizes(corpus, epochs.get(corpus.name, 0))}{vocab_text}"]
    shares = corpus.mixture.shares if corpus.mixture else {}
    for name, source in corpus.sources.items():
        lines.append(f"             {shares[name]:.1%} {name} {sizes(source, epochs[name])}")
    return lines


@contextmanager
def _explain_failures(plan: Plan) -> Iterator[None]:
    """If memory runs out or the compiler fails in this context, raise a `ValueError` that says what to change."""
    try:
        with explain_compiler_error("trainer.compile"):
            yield
    except (MemoryError, RuntimeError) as error:
        has_memory_class = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not has_memory_class and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise ValueError(
            f"out of memory with trainer.micro_batch_tokens={plan.micro_batch_size * plan.sequence_length}: lower it "
            "(a step then takes more passes, to the same result), set trainer.activation_checkpointing=true, or train "
            f"a smaller model (weights, gradients and optimizer of this one take {plan.state_bytes / 1e9:.2g} GB)"
        ) from error


def exit_code(result: Mapping[str, Any]) -> int:
    """Return 0 for a completed run, 2 for a diverged run, and 128 + the signal for an interrupted run.

    Processes other than the first return 0. At any other code, Lightning would kill the first, which may be writing.
    """
    status = result.get("status") if is_first_process() else "completed"
    if status == "interrupted":
        return 128 + result["signal"]
    return 2 if status == "diverged" else 0
