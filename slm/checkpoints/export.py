"""Write a decoder as a folder that slm can always load, and transformers too if it has the architecture.

Our tensor names are Llama's without the prefix `model.`, so only names are converted. The config holds our own
`ModelConfig` under the key `slm`, so nothing is lost for which transformers has no key. Training writes its model with
`export_model`, as it is; `export` also rewrites interleaved rotation as Llama's and, if asked, copies shared blocks.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from slm.checkpoints.architecture import LLAMA_KEYS
from slm.checkpoints.card import model_card, source_line, training_config
from slm.checkpoints.llama import as_llama, non_llama_fields, unrolled
from slm.checkpoints.load import check, load
from slm.checkpoints.place import Provenance
from slm.checkpoints.weights import dtype_name
from slm.data import Tokenizer
from slm.model.config import ModelConfig

_EXPORTED_FILES = frozenset(
    ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "training.yaml")
)
"""All files that an export can have. A folder that holds any other file is not an export, and is not replaced."""


def export(
    checkpoint: str | Path,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
    unroll_sharing: bool = False,
) -> Path:
    """Write a checkpoint that `load` accepts as a folder for transformers, with a model card; returns the folder.

    All weights are written in the precision in which most of them are stored. `revision` is a branch, tag or commit of
    a hub repository. A decoder with shared blocks is written for our own loader or, with `unroll_sharing`, as the plain
    Llama that computes the same, with one copy of a block for each of its uses. By default, `folder` is `export` (or
    `export-unrolled`) in the run directory. Raises `ValueError` for a folder that holds anything but an export of the
    same weights and, with `unroll_sharing`, for a shape that Llama does not have.
    """
    source = check(checkpoint, revision=revision)
    target = _checked_target(source, folder, unroll_sharing)
    dtype = getattr(torch, source.stored_dtype)
    decoder, tokenizer, provenance = load(checkpoint, revision=source.revision, dtype=dtype)
    config, tensors = as_llama(decoder.config, decoder.state_dict())
    if unroll_sharing:
        config, tensors = unrolled(config, tensors)
    texts = {"README.md": model_card(config, tokenizer, provenance, loads_in_llama=not non_llama_fields(config))}
    settings = training_config(provenance)
    if settings:
        texts["training.yaml"] = settings
    export_model(target, config, tensors, tokenizer, texts=texts)
    return target


def _checked_target(source: Provenance, folder: str | Path | None, unroll_sharing: bool) -> Path:
    """The folder to write to, which is new, empty, or an export of the same weights."""
    if folder is not None:
        target = Path(os.path.expanduser(folder))
    elif source.run is not None:
        target = source.run / ("export-unrolled" if unroll_sharing else "export")
    else:
        raise ValueError(f"export of {source.checkpoint}, which is not a run directory, needs a folder to write to")
    if target.resolve() == source.folder.resolve():
        raise ValueError(f"export={target} is the checkpoint itself: choose another folder")
    if target.is_dir() and any(target.iterdir()):
        other_files = sorted({path.name for path in target.iterdir()} - _EXPORTED_FILES)
        if other_files:
            raise ValueError(
                f"export={target} holds {other_files[0]}, which is no part of an export: choose another folder"
            )
        card = target / "README.md"
        if not card.exists() or source_line(source) not in card.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"export={target} holds another model: choose another folder, or remove this one")
    elif target.exists() and not target.is_dir():
        raise ValueError(f"export={target} is a file: choose a folder")
    return target


def hf_config(
    config: ModelConfig, *, bos_id: int | None, eos_id: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The values of `config.json`.

    The model type is `llama` if Llama computes exactly this decoder, `mobilellm` if its only departure from Llama is
    that each block is used twice in a row, and otherwise `slm`.
    """
    values = {key: getattr(config, name) for name, key in LLAMA_KEYS.items()}
    values |= {
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
    departures = set(non_llama_fields(config))
    uses_blocks_twice = config.layer_sharing == "immediate" and config.num_repeats == 2
    if not departures:
        values |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    elif uses_blocks_twice and departures == {"layer_sharing", "num_repeats"}:
        values |= {"model_type": "mobilellm", "share_embedding": config.tie_embeddings, "layer_sharing": True}
    return values


def export_model(
    folder: Path,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, model.safetensors, the tokenizer, and `texts` (file name -> content) into `folder`.

    The folder is replaced as a whole, and left as it was if anything fails.
    """
    partial = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        dtype = state_dict["embed_tokens.weight"].dtype
        values = hf_config(config, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, dtype=dtype)
        for name, text in {"config.json": json.dumps(values, indent=2) + "\n", **(texts or {})}.items():
            (partial / name).write_text(text, encoding="utf-8")
        tensors = {
            name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in state_dict.items()
        }
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        # safetensors lets only the owner read its file.
        shutil.copymode(partial / "config.json", partial / "model.safetensors")
        tokenizer.save(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
