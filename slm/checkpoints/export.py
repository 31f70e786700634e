"""Write a decoder as a folder for slm, and also for transformers if transformers implements the architecture.

Our tensor names are Llama's without the prefix `model.`, so tensors are only renamed. config.json has our `ModelConfig`
under the key `slm`, because transformers has no keys for some of the fields. `export_model`, which is used at the end
of training, writes a decoder unchanged, while `export` may rewrite weights (`as_llama`, `unroll`).
"""

import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from slm.checkpoints.architecture import LLAMA_KEYS
from slm.checkpoints.card import model_card, source_statement, training_config
from slm.checkpoints.load import check, load
from slm.checkpoints.location import Provenance
from slm.checkpoints.weights import dtype_name
from slm.data.chat_template import TEMPLATE_FILE
from slm.data.tokenizer import Tokenizer
from slm.model.config import ModelConfig
from slm.runtime.files import check_writable, replace

MODEL_FILES = ("model.safetensors", "model.pte", "model.gguf")
"""The weights of an export, in one of the formats."""
_EXPORTED_FILES = {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "training.yaml",
                   TEMPLATE_FILE, *MODEL_FILES}  # fmt: skip
"""All files that an export can have. A folder that holds any other file is not replaced."""
_LLAMA_FIELDS = {*LLAMA_KEYS, "rope_theta", "tie_embeddings"}
_REWRITTEN_FIELDS = {"layer_sharing", "num_repeats", "rope_style"}  # Llama lacks them; rewriting can remove them


def export(
    checkpoint: str | Path,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
    unroll_sharing: bool = False,
) -> Path:
    """Convert any checkpoint that `load` accepts to a folder for transformers, with a model card. Returns the folder.

    All weights are written in the precision in which most of them are stored. `revision` is a branch, tag or commit of
    a hub repository. By default, `folder` is `export` in the run directory (with `unroll_sharing`, `export-unrolled`).
    A decoder with shared blocks is written for slm's own loader. With `unroll_sharing` it becomes a plain Llama that
    computes the same function, with a copy of a block for each time that the block runs. Raises `ValueError` if the
    folder holds anything but an export of the same weights, or if the shape cannot be unrolled to a Llama.
    """
    source = check(checkpoint, revision=revision)
    default = "export-unrolled" if unroll_sharing else "export"
    target = export_folder(source, folder, default, "model.safetensors")
    dtype = getattr(torch, source.stored_dtype)
    decoder, tokenizer, provenance = load(checkpoint, revision=source.revision, dtype=dtype)
    config, tensors = as_llama(decoder.config, decoder.state_dict())
    if unroll_sharing:
        config, tensors = unroll(config, tensors)
    texts = {"README.md": model_card(config, tokenizer, provenance, is_llama=not non_llama_fields(config))}
    if settings := training_config(provenance):
        texts["training.yaml"] = settings
    export_model(target, config, tensors, tokenizer, texts=texts)
    return target


def export_folder(source: Provenance, folder: str | Path | None, default: str, model_file: str) -> Path:
    """Return the folder to write to.

    Raises `ValueError` unless it is new, empty, or an export of the same weights in the format of `model_file`.
    """
    if folder is not None:
        target = Path(os.path.expanduser(folder))
    elif source.run is not None:
        target = source.run / default
    else:
        raise ValueError(f"export of {source.checkpoint}, which is not a run directory, needs a folder to write to")
    if target.resolve() == source.folder.resolve():
        raise ValueError(f"export={target} is the checkpoint itself: choose another folder")
    if target.is_dir() and any(target.iterdir()):
        if other_files := sorted({path.name for path in target.iterdir()} - _EXPORTED_FILES):
            raise ValueError(f"export={target} holds {other_files[0]}, not part of an export: choose another folder")
        if others := [name for name in MODEL_FILES if name != model_file and (target / name).exists()]:
            raise ValueError(f"export={target} holds {others[0]}, an export in another format: choose another folder")
        card = target / "README.md"
        if not card.exists() or source_statement(source) not in card.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"export={target} holds another model: choose another folder, or remove this one")
    elif target.exists() and not target.is_dir():
        raise ValueError(f"export={target} is a file: choose a folder")
    check_writable(target, "export")
    return target


def hf_config(
    config: ModelConfig, *, bos_id: int | None, eos_id: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Return the contents of `config.json`.

    The model type is `llama` if transformers' Llama is exactly this decoder, `mobilellm` if the only difference is that
    each block is used twice in a row, and otherwise `slm`.
    """
    json_config = {key: getattr(config, name) for name, key in LLAMA_KEYS.items()}
    json_config |= {
        "model_type": "slm",
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": eos_id if bos_id is None else bos_id,
        "eos_token_id": eos_id,
        "dtype": dtype_name(dtype),
        "slm": config.to_dict(),
    }
    other_fields = set(non_llama_fields(config))
    runs_blocks_twice = config.layer_sharing == "immediate" and config.num_repeats == 2
    if not other_fields:
        json_config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    elif runs_blocks_twice and other_fields == {"layer_sharing", "num_repeats"}:
        json_config |= {"model_type": "mobilellm", "share_embedding": config.tie_embeddings, "layer_sharing": True}
    return json_config


def export_model(
    folder: Path,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, model.safetensors, the tokenizer, and `texts` (file name -> content) into `folder`.

    An existing folder is replaced as a whole, or left unchanged if anything fails.
    """
    with replaced_folder(folder) as partial:
        dtype = state_dict["embed_tokens.weight"].dtype
        json_config = hf_config(config, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, dtype=dtype)
        all_texts = {"config.json": json.dumps(json_config, indent=2) + "\n", **(texts or {})}
        for name, text in all_texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        tensors = {
            name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in state_dict.items()
        }
        _save(tensors, partial / "model.safetensors")
        # Without this line, only the owner could read the file that safetensors has written.
        shutil.copymode(partial / "config.json", partial / "model.safetensors")
        tokenizer.save(partial)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of safetensors. Raises `OSError` for what safetensors raises as its own error, as of a full disk."""
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from None


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `folder` at the end; if anything fails, `folder` is unchanged."""
    partial = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def non_llama_fields(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the fields that transformers' Llama lacks and whose values are not the defaults."""
    own_fields = (field for field in dataclasses.fields(config) if field.name not in _LLAMA_FIELDS)
    return tuple(field.name for field in own_fields if getattr(config, field.name) != field.default)


def as_llama(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Rewrite interleaved rotation as rotation by halves. Returns the config and tensors of an equivalent decoder.

    Both rotations turn pairs of channels by the same angles, and attention scores are sums over channels in any order,
    so it is enough to reorder rows of the query and key projections. Decoders that differ from Llama in other fields
    are returned unchanged: query and key norms, or state-space (SSD) convolutions, would have to be reordered too.
    """
    other_fields = set(non_llama_fields(config)) - _REWRITTEN_FIELDS
    if config.rope_style == "half" or other_fields:
        return config, dict(tensors)
    reordered = {
        name: _evens_then_odds(tensor, config.head_width) if ".q_proj." in name or ".k_proj." in name else tensor
        for name, tensor in tensors.items()
    }
    return dataclasses.replace(config, rope_style="half"), reordered


def _evens_then_odds(rows: Tensor, head_width: int) -> Tensor:
    """Put the rows of each head in the order 0, 2, 4, ..., 1, 3, 5, ...; for weights (rows, D) and biases (rows,)."""
    pairs = rows.unflatten(0, (-1, head_width // 2, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def unroll(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    asked_by: str = "unroll_sharing=true",
    instead: str = "export without unroll_sharing and load the folder with slm",
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Copy a shared block for each time that it runs. Returns the config and tensors of an equivalent decoder.

    Raises `ValueError` if the decoder has anything that Llama lacks besides shared blocks and interleaved rotation.
    """
    if unsupported := [name for name in non_llama_fields(config) if name not in _REWRITTEN_FIELDS]:
        name = unsupported[0]
        given = f"model.{name}={getattr(config, name)}"
        raise ValueError(f"{asked_by} writes a plain Llama, which has no {given}: {instead}")
    unrolled = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
    for new_number, block_number in enumerate(config.block_uses):
        prefix = f"layers.{block_number}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                unrolled[f"layers.{new_number}.{name.removeprefix(prefix)}"] = tensor.clone()
    return dataclasses.replace(config, num_layers=len(config.block_uses), layer_sharing="none", num_repeats=1), unrolled
