"""The model card of an export, with what other people need to know before they use the weights."""

from collections.abc import Mapping
from typing import Any

import yaml

from slm.checkpoints.location import TO_FINISH, Provenance
from slm.data.tokenizer import Tokenizer
from slm.model.config import ModelConfig
from slm.model.counts import num_params

_CARD = """\
---
license: unknown
pipeline_tag: text-generation
tags: [slm]
---

# {name}

{origin}

{model}

{training}## Use

{use}

## Limits

A small language model: it continues text, does not know what is true, and may repeat its training text, including \
its biases. Measurements above, if any, say nothing about other texts or tasks.

## Licence

Not stated. Whoever trained the weights chooses their licence, which may depend on the training text. Set `license` at \
the top of this file before publishing.
"""
_BUDGET_KEYS = ("train_tokens", "steps", "batch_tokens", "sequence_length")
_RESULT_KEYS = ("status", *_BUDGET_KEYS, "peak_lr", "seed", "precision", "device", "git_commit")
_TRAINING = """\
## Training

{rows}

Losses are in nats per token; bits per byte are over the UTF-8 bytes of the validation text.

`training.yaml` is the complete config. To train the model again, give this command in a checkout of slm:

```
python train.py -cp "$(realpath FOLDER)" -cn training output_dir=NEW
```

"""
_USE_SLM = """\
```python
from slm.checkpoints import load

decoder, tokenizer, provenance = load("FOLDER")
```"""
_USE_TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

or

"""


def training_config(provenance: Provenance) -> str | None:
    """Return the config of the run as YAML, without paths of its machine; None if the checkpoint is not from a run."""
    if provenance.run is None:
        return None
    settings = yaml.safe_load((provenance.run / "config.yaml").read_text(encoding="utf-8"))
    settings |= {"output_dir": "???", "cache_dir": "${oc.env:SLM_CACHE,'~/.cache/slm'}"}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def model_card(
    config: ModelConfig,
    tokenizer: Tokenizer,
    provenance: Provenance,
    *,
    is_llama: bool,
    engine_rows: Mapping[str, Any] | None = None,
    engine_use: str = "",
) -> str:
    """Return the text of README.md, with the front matter that the hub reads.

    `engine_rows` and `engine_use` describe an export for another engine and say how to run it.
    """
    result = provenance.result if provenance.run is not None else {}
    # A local folder is stated without its path, which means nothing on another machine.
    name = provenance.checkpoint if provenance.revision else provenance.folder.resolve().name
    commit = f" at commit {provenance.revision}" if provenance.revision else ""
    source = "a training run" if provenance.run is not None else f"`{name}`{commit}"
    # The command that would finish the run is left out of notes, because it names folders of this machine.
    notes = [f"- {note.partition(TO_FINISH)[0].rstrip('.')}." for note in provenance.notes]
    introduction = _USE_TRANSFORMERS if is_llama else "transformers has no such architecture; slm loads it:\n\n"
    return _CARD.format(
        name=result.get("name") or name,
        origin="\n".join([f"Exported by slm from {source}; {source_statement(provenance)}.", *notes]),
        model=_table(_model_rows(config, tokenizer, provenance, result) | dict(engine_rows or {})),
        training=_TRAINING.format(rows=_table(_training_rows(result))) if result else "",
        use=engine_use or introduction + _USE_SLM,
    )


def source_statement(provenance: Provenance) -> str:
    """Return the clause in a card from which a later export recognises that the card describes the same weights."""
    return f"fingerprint of the source `{provenance.fingerprint}`"


def _model_rows(
    config: ModelConfig, tokenizer: Tokenizer, provenance: Provenance, result: Mapping[str, Any]
) -> dict[str, Any]:
    # A run's tokenizer is loaded from its folder `model`, after which it is called; the result has its real name.
    name = (result.get("tokenizer") or {}).get("name") or tokenizer.name
    bos_text = "puts its begin token before a text" if tokenizer.adds_bos else "puts nothing before a text"
    return {
        "parameters": num_params(config),
        "without embeddings": num_params(config, non_embedding=True),
        "stored as": provenance.stored_dtype,
        "tokenizer": f"{name} (fingerprint {tokenizer.fingerprint}), {tokenizer.vocab_size:,} ids, {bos_text}",
        **{key: str(value) for key, value in config.to_dict().items() if key != "init_std"},
    }


def _training_rows(result: Mapping[str, Any]) -> dict[str, Any]:
    data, val = result.get("data") or {}, result.get("val") or {}
    return {
        **{key: result.get(key) for key in _RESULT_KEYS},
        # As text, because `_table` puts thousands separators into integers.
        "seed": str(result["seed"]) if "seed" in result else None,
        "trained for": f"quantize={kind}" if (kind := result.get("quantize")) else None,
        "data": f"{data.get('name')} (fingerprint {data.get('fingerprint')})" if data else None,
        **{f"validation {key}": value for key, value in val.items()},
    }


def _table(rows: Mapping[str, Any]) -> str:
    """Format the rows that have a value as a Markdown table, with thousands separators in integers."""
    lines = ["| | |", "|---|---|"]
    for key, value in rows.items():
        if value is not None:
            lines.append(f"| {key} | {value:,} |" if isinstance(value, int) else f"| {key} | {value} |")
    return "\n".join(lines)
