"""Write a decoder as a folder that transformers loads where the architecture exists there, and that we always load.

Notable: our tensor names are Llama's without the `model.` prefix, so names are the whole conversion; our own
`ModelConfig` travels under the key `slm`, so nothing is lost where transformers has no word for it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from slm.model.config import ModelConfig


class SavesTokenizer(Protocol):
    """What export needs of a tokenizer."""

    bos_id: int | None
    eos_id: int

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and its config into `folder`."""


def is_llama(config: ModelConfig) -> bool:
    """Whether transformers' Llama computes the same function."""
    return config.layer_sharing == "none" and config.qk_norm == "none" and config.rope_style == "half"


def hf_config(config: ModelConfig, *, bos_id: int | None, eos_id: int) -> dict[str, Any]:
    """`config.json`: model type `llama` where that is exact, `mobilellm` for immediate sharing, else `slm`."""
    shared_only = config.layer_sharing == "immediate" and config.num_repeats == 2
    model_type = "llama" if is_llama(config) else "mobilellm" if shared_only and config.qk_norm == "none" else "slm"
    values = {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": eos_id if bos_id is None else bos_id,
        "eos_token_id": eos_id,
        "dtype": "float32",
        "slm": config.to_dict(),
    }
    if model_type == "llama":
        values["architectures"] = ["LlamaForCausalLM"]
    if model_type == "mobilellm":
        values |= {"share_embedding": config.tie_embeddings, "layer_sharing": True}
    return values


def export_model(
    folder: Path, config: ModelConfig, state_dict: Mapping[str, Tensor], tokenizer: SavesTokenizer
) -> None:
    """Write config.json, model.safetensors and the tokenizer to `folder`, replacing it whole, or not at all."""
    partial = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        text = json.dumps(hf_config(config, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id), indent=2)
        (partial / "config.json").write_text(text + "\n")
        tensors = {_hf_name(name): tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"
