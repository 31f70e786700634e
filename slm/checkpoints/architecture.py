"""Read the `config.json` of a released model as a `ModelConfig`, or say in one sentence why it is not supported.

Absent keys have the defaults of transformers, so that a released model computes the same function here. Features that
would change the function and are not implemented here (scaled rotary positions, windows, quantisation) are refused by
name and never ignored. Code in the folder is not read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.model.config import ModelConfig

MODEL_TYPES = ("llama", "mobilellm", "slm")
"""Supported values of `model_type`: SmolLM2, TinyLlama and others are `llama`; `slm` is an export of ours."""

LLAMA_KEYS = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim", "max_position_embeddings": "max_position_embeddings", "norm_eps": "rms_norm_eps",
    "attention_bias": "attention_bias", "mlp_bias": "mlp_bias", "init_std": "initializer_range",
}  # fmt: skip
"""Field of `ModelConfig` -> key of a Llama's config.json. `rope_theta` and `tie_embeddings` may have several keys."""
# Defaults of transformers' LlamaConfig. Fields of `LLAMA_KEYS` that are not listed here are required.
_DEFAULTS: dict[str, Any] = {
    "num_kv_heads": None, "head_dim": None, "max_position_embeddings": 2048, "norm_eps": 1e-6,
    "attention_bias": False, "mlp_bias": False, "init_std": 0.02,
}  # fmt: skip


class UnsupportedModel(ValueError):
    """The config is of a model that our decoder cannot hold, but that others may compute."""


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `ValueError` if the file is missing or holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): restore it") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): restore it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}, but must hold an object: restore it")
    return content


def read_config(file: Path) -> ModelConfig:
    """Read the shape in a `config.json`, from the key `slm` of our own exports or the keys of Llama and MobileLLM.

    `tie_embeddings` is what the file says. When the weights are loaded, they decide whether there is a separate head.
    Raises `UnsupportedModel` with the name of the key if our decoder cannot hold the model, and `ValueError` if the
    config is damaged or contradicts itself.
    """
    json_config = read_json(file)
    model_type, slm_fields = json_config.get("model_type"), json_config.get("slm")
    if model_type not in MODEL_TYPES:
        given = "has no model_type" if model_type is None else f"has model_type {model_type!r}"
        raise UnsupportedModel(f"{file} {given}, but must have one of {', '.join(MODEL_TYPES)}")
    try:
        if slm_fields is not None and not isinstance(slm_fields, Mapping):
            raise ValueError(f"slm={slm_fields!r} must be an object, the fields of ModelConfig")
        if model_type == "slm":
            if slm_fields is None:
                raise ValueError("model_type slm needs the shape under the key slm, which is absent")
            return ModelConfig.from_dict(slm_fields)
        _refuse_unsupported(json_config)
        config = _llama_config(json_config, may_share_blocks=model_type == "mobilellm")
        if slm_fields is None:
            return config
        slm_config = ModelConfig.from_dict(slm_fields)
        for name, value in config.to_dict().items():  # another program may have changed the Llama keys of an export
            if getattr(slm_config, name) != value:
                raise ValueError(
                    f"slm.{name}={getattr(slm_config, name)} contradicts the Llama keys, which say {value}: "
                    "remove the key slm if the Llama keys are right"
                )
        return slm_config
    except ValueError as error:
        kind = UnsupportedModel if isinstance(error, UnsupportedModel) else ValueError
        raise kind(f"{file}: {error}") from None


def _llama_config(json_config: Mapping[str, Any], *, may_share_blocks: bool) -> ModelConfig:
    fields = {name: json_config[key] for name, key in LLAMA_KEYS.items() if json_config.get(key) is not None}
    if missing := [key for name, key in LLAMA_KEYS.items() if name not in fields and name not in _DEFAULTS]:
        raise ValueError(f"{' and '.join(missing)} must be set in the config of a {json_config['model_type']} model")
    fields = _DEFAULTS | fields
    if may_share_blocks and json_config.get("layer_sharing"):
        fields |= {"layer_sharing": "immediate", "num_repeats": 2}
    # The hub's MobileLLM configs tie the head by share_embedding, although tie_word_embeddings is false.
    is_tied = bool(json_config.get("tie_word_embeddings")) or bool(json_config.get("share_embedding"))
    rope_theta = _rope_theta(json_config)
    try:
        return ModelConfig(**fields, rope_theta=rope_theta, tie_embeddings=is_tied)
    except ValueError as error:
        raise ValueError(str(error).replace("model.", "")) from None


def _rope_theta(json_config: Mapping[str, Any]) -> float:
    """Return the base of the rotation. transformers 5 writes it to rope_parameters, earlier versions to rope_theta."""
    theta = json_config.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rope = {} if json_config.get(key) is None else json_config[key]
        if not isinstance(rope, Mapping):
            raise ValueError(f"{key}={rope!r} must be an object or null")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default" and any(isinstance(value, Mapping) for value in rope.values()):
            kind = "one for each kind of layer"
        if kind != "default":
            raise UnsupportedModel(f"{key} asks for rotary positions of type {kind!r}, but only 'default' is supported")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModel(f"{key}.partial_rotary_factor={rope['partial_rotary_factor']} must be 1 or absent")
        theta = rope.get("rope_theta", theta)
    return 10_000.0 if theta is None else theta


def refuse_quantised(json_config: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the config says that the weights are quantised."""
    if quantisation := json_config.get("quantization_config"):
        method = quantisation.get("quant_method", "unnamed") if isinstance(quantisation, Mapping) else quantisation
        raise ValueError(
            f"quantization_config says that the weights are quantised ({method}), which is not supported: "
            "give the release in float16, bfloat16 or float32"
        )


def _refuse_unsupported(json_config: Mapping[str, Any]) -> None:
    refuse_quantised(json_config)
    layer_types = json_config.get("layer_types") or []
    is_full_attention = isinstance(layer_types, list) and layer_types.count("full_attention") == len(layer_types)
    has_window = json_config.get("sliding_window") is not None and json_config.get("use_sliding_window", True)
    checks = {  # key -> what is accepted, whether the config has it
        "hidden_act": ("'silu'", json_config.get("hidden_act", "silu") in ("silu", "swish")),
        "sliding_window": ("null", not has_window),
        "layer_types": ("'full_attention' for all", is_full_attention),
        "partial_rotary_factor": ("1.0", json_config.get("partial_rotary_factor", 1.0) == 1.0),
    }
    for key, (accepted, is_supported) in checks.items():
        if not is_supported:
            raise UnsupportedModel(f"{key}={json_config[key]!r:.80} is not supported: it must be {accepted}")
