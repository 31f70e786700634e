"""Read the folder of a model that our decoder cannot hold, so that transformers can compute it: config and tokenizer.

Notable: transformers gets a local folder and our own memory-mapped tensors, so it downloads nothing, and no code of a
release is run. What would run such code, or is no model that predicts the next token of a text, is refused by name.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.checkpoints.architecture import read_json, refuse_quantised
from slm.data.chat_template import load_chat_template
from slm.data.readers import first_line
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import TOKENIZER_FILES, load_tokenizer

MAX_LENGTH = 2048
"""Context of a model whose config states none, such as a state-space model: the longest window of our protocols."""
MAX_LAYERS = 10_000
LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
OTHER_TOKENIZER_FILES = ("vocab.json", "merges.txt", "added_tokens.json")
"""Files of a byte-level tokenizer from before tokenizer.json, which transformers converts."""
MISSING = "pip install 'slm[hub]' installs transformers, which may compute it"


@dataclass(frozen=True, kw_only=True)
class ForeignShape:
    """What the config of a model of transformers says of its shape, under the names of `ModelConfig`."""

    model_type: str
    vocab_size: int
    max_position_embeddings: int
    hidden_size: int | None
    num_layers: int | None
    num_heads: int | None
    num_kv_heads: int | None
    intermediate_size: int | None
    tie_embeddings: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the config states."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_foreign(folder: Path, reason: ValueError) -> tuple[ForeignShape, tuple[str, ...]]:
    """Return the shape of a model that transformers can compute, and notes for readers of its results.

    `reason` says why our decoder cannot hold it. Raises `ValueError` if transformers cannot compute it either.
    """
    file = folder / "config.json"
    json_config = read_json(file)
    try:
        _refuse_by_keys(json_config, folder)
        config = transformers_config(folder, reason)
        shape = _shape(config)
    except ValueError as error:
        raise error if error is reason else ValueError(f"{file}: {error}") from None
    if _stated(config, *LENGTH_KEYS) is not None:
        return shape, ()
    return shape, (f"The config states no longest context: windows have at most {MAX_LENGTH:,} tokens.",)


def transformers_config(folder: Path, reason: Exception) -> Any:
    """Return the config of a text model in the classes of transformers. Raises `ValueError`, or `reason`, if none."""
    try:
        from transformers import AutoConfig
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError:
        raise ValueError(f"{reason}; {MISSING}") from None
    json_config = read_json(folder / "config.json")
    model_type = json_config.get("model_type")
    if model_type not in CONFIG_MAPPING_NAMES:
        raise reason
    class_of_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in class_of_type:
        raise ValueError(
            f"model_type {model_type!r} does not predict the next token of a text, so it cannot be measured"
        )
    classes = {name for value in class_of_type.values() for name in ([value] if isinstance(value, str) else value)}
    for name in json_config.get("architectures") or []:
        if ("For" in str(name) or "With" in str(name)) and name not in classes:  # GPT2Model may have its head tied
            raise ValueError(
                f"architectures={name!r} does not predict the next token of a text, so it cannot be measured"
            )
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the class depends on the model type
            raise ValueError(f"transformers cannot read it ({first_line(error)})") from None
    return config


def empty_model(folder: Path, num_stored: Mapping[str, int] | None = None) -> Any:
    """Build the model of a folder without storage. `num_stored` has the number of elements of each stored tensor.

    Raises `ValueError` if the files hold fewer elements than the model has, under whatever names; None if that was
    checked before.
    """
    import torch

    config = transformers_config(folder, ValueError(f"{folder}: transformers does not know the model"))
    num_layers = _stated(config.get_text_config(), "num_hidden_layers") or 0
    if num_stored is not None and num_layers > len(num_stored):  # checked before so many layers are built
        raise ValueError(f"{folder} has only {len(num_stored):,} tensors for {num_layers:,} layers in config.json")
    with quiet_transformers(), torch.device("meta"):
        from transformers import AutoModelForCausalLM  # imports torchao if it is installed, which warns

        try:
            model = AutoModelForCausalLM.from_config(config)
        except Exception as error:  # the class depends on the model type
            raise ValueError(f"{folder}: transformers cannot build the model ({first_line(error)})") from None
    if num_stored is None:
        return model
    needed, stored = sum(parameter.numel() for parameter in model.parameters()), sum(num_stored.values())
    if needed > stored:
        raise ValueError(
            f"{folder}: config.json describes {needed:,} parameters, but the files hold only {stored:,}: "
            "download the missing or the right ones"
        )
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence warnings and progress bars of transformers and of what it imports, which would interrupt our own."""
    from transformers.utils import logging as transformers_logging

    disabled, had_bar = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(disabled)
        if had_bar:
            transformers_logging.enable_progress_bar()


def foreign_tokenizer(folder: Path, name: str | None) -> Tokenizer:
    """Load the tokenizer of a folder; what is neither of `TOKENIZER_FILES` is converted by transformers."""
    try:
        return load_tokenizer(folder, name=name, asked_by="checkpoint")
    except ValueError:
        others = (TOKENIZER_FILES[1], *OTHER_TOKENIZER_FILES)
        if (folder / TOKENIZER_FILES[0]).is_file() or not any((folder / other).is_file() for other in others):
            raise
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            converted: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            content = converted.backend_tokenizer.to_str()
            adds_bos = converted("a")["input_ids"][:1] == [converted.bos_token_id]
        except Exception as error:  # the class depends on the tokenizer
            raise ValueError(
                f"checkpoint: transformers cannot convert the tokenizer in {folder} ({first_line(error)}): add a "
                "tokenizer.json to the folder"
            ) from None
    if converted.eos_token is None:
        raise ValueError(f"checkpoint: nothing in {folder} says what ends a text: name it in tokenizer_config.json")
    bos, eos = converted.bos_token, converted.eos_token
    tokenizer = Tokenizer(name or folder.resolve().name, content, bos=bos, eos=eos, adds_bos=adds_bos)
    tokenizer.chat_template = load_chat_template(folder)
    return tokenizer


def _refuse_by_keys(json_config: Mapping[str, Any], folder: Path) -> None:
    refuse_quantised(json_config)
    if json_config.get("auto_map"):
        raise ValueError("auto_map says that the model runs code of its repository, which slm never does")
    for key in ("vision_config", "audio_config"):
        if json_config.get(key):
            raise ValueError(f"{key} says that the model reads more than text, which cannot be measured")
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        num_layers = json_config.get(key)
        if isinstance(num_layers, int) and num_layers > MAX_LAYERS:  # transformers would list them
            raise ValueError(f"{key}={num_layers:,} is more than any model has: give at most {MAX_LAYERS:,}")
    if json_config.get("is_encoder_decoder"):
        raise ValueError("is_encoder_decoder=true: the model has an encoder, and only decoders can be measured")
    if (folder / "adapter_config.json").exists():
        raise ValueError("adapter_config.json lies beside it: merge the adapter into the weights first")


def _shape(config: Any) -> ForeignShape:
    config = config.get_text_config()
    vocab_size = _stated(config, "vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be a whole number above 0")
    return ForeignShape(
        model_type=config.model_type,
        vocab_size=vocab_size,
        max_position_embeddings=int(_stated(config, *LENGTH_KEYS) or MAX_LENGTH),
        hidden_size=_stated(config, "hidden_size"),
        num_layers=_stated(config, "num_hidden_layers"),
        num_heads=_stated(config, "num_attention_heads"),
        num_kv_heads=_stated(config, "num_key_value_heads", "num_attention_heads"),
        intermediate_size=_stated(config, "intermediate_size"),
        tie_embeddings=_stated(config, "tie_word_embeddings"),
    )


def _stated(config: Any, *keys: str) -> Any:
    """Return the first of `keys` that the config states. transformers maps the names of each type to common names."""
    return next((value for key in keys if (value := getattr(config, key, None)) is not None), None)
