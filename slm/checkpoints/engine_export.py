"""Export a checkpoint for another engine: a folder with the model's file, its tokenizer, and a card with its parity.

Notable: the file is run in its engine before the folder appears, and the card says how far its logits are from slm's.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from slm.checkpoints.card import model_card, training_config
from slm.checkpoints.engine import import_extra, quiet
from slm.checkpoints.engine_folder import file_digest, open_engine
from slm.checkpoints.executorch import MAX_CALL_TOKENS, write_program
from slm.checkpoints.export import as_llama, export_folder, hf_config, replaced_folder, unroll
from slm.checkpoints.gguf import GgufModel, write_gguf
from slm.checkpoints.load import check, load
from slm.checkpoints.location import TO_FINISH, Provenance
from slm.data.tokenizer import Tokenizer
from slm.model import Decoder, generate
from slm.model.config import ModelConfig
from slm.model.quantised import quantise
from slm.runtime.progress import say

FILES = {"executorch": "model.pte", "gguf": "model.gguf"}
_PACKAGES = {"executorch": ("executorch", "torch"), "gguf": ("gguf", "llama-cpp-python")}
_KEPT_RESULTS = ("family", "train_tokens", "sequence_length", "status")
_GGUF = {"asked_by": "format=gguf", "instead": "format=executorch takes every shape"}
MIN_CONTEXT = 4  # so that the number of tokens of a call can change
PARITY_TOKENS, PARITY_NEW_TOKENS, PARITY_TEXTS = 128, 32, 2000
_MEASURE = "or measure it: `python evaluate.py checkpoint=FOLDER/{file} data=local data.paths=TEXT.txt`\n"
_USE_PROGRAM = """\
In Python (`pip install executorch`), on a phone with ExecuTorch's library for Android or iOS:

```python
import torch
from executorch.runtime import Runtime

forward = Runtime.get().load_program("FOLDER/model.pte").load_method("forward")
tokens, start = torch.tensor([[1, 2, 3]]), torch.tensor([0])
logits = forward.execute([tokens, start])[0]  # then one token at a time, with start = 3, 4, ...
```

A call takes at most {call} tokens, and `start` + tokens must not exceed the context. A call with `start` 0 begins a new
text. The method has the signature and constants of ExecuTorch's runner for language models; the tokenizer is
`tokenizer.json`;

"""
_USE_GGUF = """\
With llama.cpp:

```sh
llama-cli -m FOLDER/model.gguf -p "Once upon a time"
```

"""


def export_for_engine(
    checkpoint: str | Path,
    folder: str | Path | None = None,
    *,
    engine: str,
    revision: str | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    quantize: str | None = None,
) -> Path:
    """Write any checkpoint that `load` accepts for "executorch" (`model.pte`) or "gguf" (`model.gguf`).

    Returns the folder. `dtype` is a key of `slm.checkpoints.gguf.DTYPES`, or auto: float32 for a program, float16 for
    GGUF. `max_length` is the longest text, by default the length that a run was trained on, else the model's context.
    `quantize` rounds the weights and activations of a program; it is a kind of `QUANTISATIONS` that is dynamic.
    Raises `ValueError` if the engine is missing or cannot have this shape, or if the folder holds anything else.
    """
    source = check(checkpoint, revision=revision)
    target = export_folder(source, folder, engine, FILES[engine])
    positions = source.config.max_position_embeddings
    context = max_length or min(positions, source.result.get("sequence_length") or positions)
    if context < MIN_CONTEXT:
        raise ValueError(f"export_context={context} must be at least {MIN_CONTEXT}")
    if context > positions:
        raise ValueError(f"export_context={context} is longer than the {positions} positions of the checkpoint")
    dtype = {"executorch": "float32", "gguf": "float16"}[engine] if dtype == "auto" else dtype
    if engine == "gguf":
        unroll(source.config, {}, **_GGUF)  # refuses the shape before weights are read
    with quiet():  # missing packages too are refused before anything is said or read
        import_extra(
            *{"executorch": ("executorch.exir", "device"), "gguf": ("gguf", "gguf")}[engine], f"format={engine}"
        )
        if quantize is not None:
            import_extra("torchao.quantization", "device", f"quantize={quantize}")
    decoder, tokenizer, provenance = load(checkpoint, revision=source.revision)
    reference, notes = decoder, tuple[str, ...]()  # what the engine should compute
    if quantize is not None:
        reference, dtype = copy.deepcopy(decoder), quantize
        notes = (quantise(reference, quantize),)
    remark = "; compiling takes minutes" if engine == "executorch" else ""
    say(f"export: {len(decoder.config.block_uses)} uses of a block for {engine}{remark}")
    with replaced_folder(target) as partial:
        file = partial / FILES[engine]
        config = dataclasses.replace(decoder.config, max_position_embeddings=context)
        if engine == "gguf":
            llama, tensors = as_llama(config, decoder.state_dict())
            llama, tensors = unroll(llama, tensors, **_GGUF)
            notes = write_gguf(file, target.name, llama, tensors, tokenizer, dtype)
        else:
            write_program(file, decoder, context, tokenizer, quantize)
        parity = _parity(file, reference, config, tokenizer, dtype)
        _write_beside(file, engine, config, tokenizer, provenance, dtype, parity, notes)
    return target


def _parity(file: Path, decoder: Decoder, config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """Compare the engine's logits and greedy continuation with the decoder's, on random tokens of text."""
    try:
        model = open_engine(file, config, dtype)
    except ValueError as error:
        return {"not compared": str(error).replace(str(file), file.name)}  # without the path of this machine
    rng = torch.Generator().manual_seed(0)
    length = min(PARITY_TOKENS, config.max_position_embeddings)
    tokens_1T = torch.randint(int(tokenizer.token_bytes.size), (1, length), generator=rng)
    with torch.inference_mode():
        ours, theirs = decoder(tokens_1T), model.hidden(tokens_1T)
    prompt = tokens_1T[0, : length // 2].tolist()
    options: dict[str, Any] = {"max_new_tokens": PARITY_NEW_TOKENS, "temperature": 0}
    first, second = (list(generate(lm, prompt, **options)) for lm in (decoder, model))
    ids = {}
    if isinstance(model, GgufModel):  # llama.cpp has a tokenizer of its own
        texts = [text for topic in topics.values() for text in topic.split("\n\n")][:PARITY_TEXTS]
        equal = sum(model.encode(text) == tokenizer.encode(text) for text in texts)
        ids = {"equal token ids": f"{equal:,} of {len(texts):,} paragraphs of Python's manual"}
    return ids | {
        "largest difference of logits": float((ours - theirs).abs().max()),
        "largest logit": float(ours.abs().max()),
        "equal greedy tokens": f"{sum(a == b for a, b in zip(first, second, strict=False))} of {len(first)}",
    }


def _write_beside(
    file: Path,
    engine: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    provenance: Provenance,
    dtype: str,
    parity: Mapping[str, Any],
    notes: tuple[str, ...],
) -> None:
    """Write config.json with the record of the export, the tokenizer, the card, and a run's config."""
    versions = {}
    for name in _PACKAGES[engine]:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    record = {
        "format": engine,
        "file": file.name,
        "sha256": file_digest(file),
        "dtype": dtype,
        "source": provenance.fingerprint,
        "result": {key: provenance.result[key] for key in _KEPT_RESULTS if key in provenance.result},
        "versions": versions,
        "parity": parity,
        "notes": [*(note.partition(TO_FINISH)[0] for note in provenance.notes), *notes],  # without this machine's paths
    }
    settings = hf_config(config, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id) | {"engine": record}
    rows = {
        "file": f"{file.name}, {file.stat().st_size:,} bytes, {dtype}",
        "longest text": config.max_position_embeddings,
        "written with": ", ".join(f"{name} {number}" for name, number in versions.items()),
        **{f"parity with slm: {name}": str(value) for name, value in parity.items()},
        **({"note": " ".join(notes)} if notes else {}),
    }
    use = {"executorch": _USE_PROGRAM.format(call=MAX_CALL_TOKENS), "gguf": _USE_GGUF}[engine]
    use += _MEASURE.format(file=file.name)
    card = model_card(config, tokenizer, provenance, is_llama=False, engine_rows=rows, engine_use=use)
    texts = {"README.md": card, "config.json": json.dumps(settings, indent=2) + "\n"}
    if training := training_config(provenance):
        texts["training.yaml"] = training
    for name, text in texts.items():
        (file.parent / name).write_text(text, encoding="utf-8")
    tokenizer.save(file.parent)
