"""The model card of an export: what a stranger needs to know before using the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from slm.checkpoints.provenance import Provenance
from slm.data import Tokenizer
from slm.model.config import ModelConfig
from slm.model.counts import num_params


def training_config(provenance: Provenance) -> str | None:
    """The config of the run behind a checkpoint, without the folders of its machine; None if there is no run."""
    if provenance.run is None:
        return None
    settings = yaml.safe_load((provenance.run / "config.yaml").read_text(encoding="utf-8"))
    settings |= {"output_dir": "???", "cache_dir": "${oc.env:SLM_CACHE,'~/.cache/slm'}"}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def model_card(config: ModelConfig, tokenizer: Tokenizer, provenance: Provenance, *, loads_in_llama: bool) -> str:
    """Text of README.md, with the front matter that the hub reads."""
    trained = provenance.result if provenance.run is not None else {}
    sections = [
        "---\nlicense: unknown\npipeline_tag: text-generation\ntags: [slm]\n---",
        f"# {trained.get('name') or _source_name(provenance)}",
        _origin(provenance),
        _table(_model_rows(config, tokenizer, provenance)),
    ]
    if trained:
        sections += ["## Training", _table(_training_rows(trained)), _command()]
    sections += [
        "## Use",
        _use(loads_in_llama),
        "## Limits",
        "A small language model: it continues text, does not know what is true, and repeats what its training text "
        "holds, biases included. What was measured above, if anything, says nothing about any other text or task.",
        "## Licence",
        "Not stated. That of the weights is for whoever trained them to say, and may depend on the training text; "
        "set `license` at the top of this file before publishing.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _origin(provenance: Provenance) -> str:
    commit = f" at commit {provenance.revision}" if provenance.revision else ""
    source = "a training run" if provenance.run is not None else f"`{_source_name(provenance)}`{commit}"
    line = f"Exported by slm from {source}; {source_line(provenance)}."
    return "\n".join([line, *(f"- {note}" for note in _portable_notes(provenance))])


def source_line(provenance: Provenance) -> str:
    """What a card says of its source, by which an export of the same weights is known."""
    return f"fingerprint of the source `{provenance.fingerprint}`"


def _source_name(provenance: Provenance) -> str:
    """A hub id whole; of a local folder its name, since where it lies concerns nobody else."""
    return provenance.checkpoint if provenance.revision else provenance.folder.resolve().name


def _portable_notes(provenance: Provenance) -> list[str]:
    """Notes without the command that finishes a run, which is about folders of one machine."""
    return [f"{note.partition('; to finish it')[0].rstrip('.')}." for note in provenance.notes]


def _model_rows(config: ModelConfig, tokenizer: Tokenizer, provenance: Provenance) -> dict[str, Any]:
    shape = {key: value for key, value in config.to_dict().items() if key != "init_std"}
    return {
        "parameters": f"{num_params(config):,}",
        "without embeddings": f"{num_params(config, non_embedding=True):,}",
        "stored as": provenance.stored_dtype,
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,} ids, "
        + ("puts its begin token before a text" if tokenizer.adds_bos else "puts nothing before a text"),
        **shape,
    }


def _training_rows(result: Mapping[str, Any]) -> dict[str, Any]:
    data, val = result.get("data") or {}, result.get("val") or {}
    rows = {
        "status": result.get("status"),
        "data": f"{data.get('name')} (fingerprint {data.get('fingerprint')})" if data else None,
        "training tokens": _count(result.get("train_tokens")),
        "steps": _count(result.get("steps")),
        "tokens a step": _count(result.get("batch_tokens")),
        "sequence length": result.get("sequence_length"),
        "peak learning rate": result.get("peak_lr"),
        "seed": result.get("seed"),
        "precision": result.get("precision"),
        "validation loss, nats a token": val.get("loss"),
        "validation bits per byte": val.get("bits_per_byte"),
        "validation perplexity a token": val.get("perplexity"),
        "scored tokens and bytes": f"{val['tokens']:,} and {val['bytes']:,}" if val else None,
        "device": result.get("device"),
        "commit of slm": result.get("git_commit"),
    }
    return {key: value for key, value in rows.items() if value is not None}


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _command() -> str:
    return (
        "`training.yaml` is the whole config. In a checkout of slm, this trains it again:\n\n"
        '```\npython train.py -cp "$(realpath FOLDER)" -cn training output_dir=NEW\n```'
    )


def _use(loads_in_llama: bool) -> str:
    ours = '```python\nfrom slm.checkpoints import load\n\ndecoder, tokenizer, provenance = load("FOLDER")\n```'
    if not loads_in_llama:
        return f"transformers has no such architecture; slm loads it:\n\n{ours}"
    theirs = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'
    )
    return f"{theirs}\n\nor\n\n{ours}"


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
