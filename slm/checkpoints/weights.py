"""Read the tensors of a checkpoint folder and match their names and shapes with the config of the decoder.

Files are memory-mapped: a tensor is read from disk only when it is copied. Until loading ends, the process uses memory
for both the mapped pages and the copies. Pickles are read by `torch.load(weights_only=True, mmap=True)`, which accepts
only tensors and refuses anything else without executing it.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slm.checkpoints.architecture import read_json
from slm.data.vocabulary import LFS_POINTER
from slm.model.config import ModelConfig
from slm.model.empty import empty_decoder
from slm.runtime.words import shortlist

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
"""Names of weight files. The first of them that exists and can be used is read."""
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Prefixes of the keys in the state_dict of a training checkpoint: names of submodules of `LanguageModel`.
_DECODER, _AVERAGES = "decoder.", "average."


class Weights(NamedTuple):
    """Tensors under our own names (Llama's without `model.`), and the files from which they are memory-mapped."""

    tensors: Mapping[str, Tensor]
    files: list[Path]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "float16"."""
    return str(dtype).removeprefix("torch.")


def open_weights(folder: Path, config: ModelConfig | None) -> tuple[Weights, tuple[str, ...]]:
    """Open the first usable file of `WEIGHT_FILES` in a folder. Returns its weights, and notes on unusable files.

    With a config, the tensors have the names and shapes of its decoder. With None, they have the names in the file.

    Raises `ValueError` if every file is absent, damaged, holds more than tensors, or belongs to another decoder.
    """
    problems: list[str] = []
    for file in [folder / name for name in WEIGHT_FILES if (folder / name).exists()]:
        try:
            weights = _open_tensors(file, is_foreign=config is None)
            weights = weights if config is None else match_weights(weights, config, folder)
        except ValueError as error:
            problems.append(str(error))
        else:
            beginning = f"{file.name} was read because a preferred file cannot be used"
            return weights, tuple(f"{beginning}: {problem}." for problem in problems)
    raise ValueError("; and ".join(problems) or f"{folder} has no weights: give {' or '.join(WEIGHT_FILES)}")


def _open_tensors(file_or_index: Path, *, is_foreign: bool) -> Weights:
    files = _shards(file_or_index) if file_or_index.suffix == ".json" else [file_or_index]
    # Old releases also store masks of integers, and rotary frequencies, which the config determines.
    opened = [item for file in files for item in open_file(file, may_have_masks=is_foreign).items()]
    if is_foreign:
        return Weights(dict(opened), files)
    kept = {name.removeprefix("model."): tensor for name, tensor in opened if "rotary_emb" not in name.split(".")}
    return Weights(kept, files)


def open_run_checkpoint(file: Path, config: ModelConfig) -> Weights:
    """Open the weights that an export of this training checkpoint would contain: the averages if there are any."""
    state = _load_pickle(file).get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} is not a checkpoint of a run: it has no state_dict")
    tensors = _check_tensors(file, weights_to_export(state))
    return match_weights(Weights(tensors, [file]), config, file.parent)


def weights_to_export(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's weights from a training checkpoint's `state_dict`: the averages if there are any."""
    names = [name.removeprefix(_DECODER) for name in state if name.startswith(_DECODER)]
    return {name: state.get(_AVERAGES + average_name(name), state[_DECODER + name]) for name in names}


def average_name(name: str) -> str:
    """Return the name of the buffer that averages the parameter `name`; torch allows no dots in names of buffers."""
    return name.replace(".", "/")


def match_weights(weights: Weights, config: ModelConfig, folder: Path) -> Weights:
    """Return the weights under the decoder's names. Raises `ValueError` if names or shapes are not the decoder's.

    If the head is tied to the embedding, the files may store both or only one of the two.
    """
    stored = dict(weights.tensors)
    source = weights.files[0] if len(weights.files) == 1 else folder
    if config.num_layers > len(stored):  # checked before a decoder with so many layers is built
        raise ValueError(f"{source} has only {len(stored):,} tensors for {config.num_layers:,} layers in config.json")
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_decoder(config).state_dict().items()}
    if config.tie_embeddings and HEAD in stored and EMBEDDING not in stored:
        stored[EMBEDDING] = stored.pop(HEAD)
    if HEAD in shapes and HEAD not in stored:
        raise ValueError(
            f"{source}: the config says that the head is not tied (neither tie_word_embeddings nor "
            f"share_embedding is true), but the weights have no {HEAD}"
        )
    accepted_shapes = shapes | {HEAD: shapes[EMBEDDING]}  # a tied head may be stored too
    faults = {
        "missing": [name for name in shapes if name not in stored],
        "unexpected": [name if name.isprintable() else repr(name) for name in stored if name not in accepted_shapes],
        "mis-shaped": [
            f"{name} is {list(stored[name].shape)} and not {list(shape)}"
            for name, shape in accepted_shapes.items()
            if name in stored and stored[name].shape != shape
        ],
    }
    refuse_faults(source, faults)
    return Weights(stored, weights.files)


def refuse_faults(source: Path, faults: Mapping[str, list[str]]) -> None:
    """Raise `ValueError` if a kind of fault, such as "missing", has names of tensors."""
    problems = [f"{len(names)} {kind} ({shortlist(names, max_items=3)})" for kind, names in faults.items() if names]
    if problems:
        raise ValueError(f"{source}: the tensors do not match the config: {'; '.join(problems)}")


def open_file(file: Path, *, may_have_masks: bool = False) -> dict[str, Tensor]:
    """Open the tensors of one file under their names in the file, without its masks of integers if it may have some."""
    try:
        with file.open("rb") as handle:
            first_bytes = handle.read(len(LFS_POINTER))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): restore it") from None
    if not first_bytes:
        raise ValueError(f"{file} is empty: download it again")
    if first_bytes == LFS_POINTER:
        raise ValueError(f"{file} is a git-lfs pointer, not the weights: run git lfs pull in {file.parent}")
    content: dict[str, Any] = _load_safetensors(file) if file.suffix == ".safetensors" else _load_pickle(file)
    if may_have_masks:
        content = {name: tensor for name, tensor in content.items() if not _is_mask(str(name), tensor)}
    return _check_tensors(file, content)


def _is_mask(name: str, tensor: Any) -> bool:
    # Integers under the name of a weight are quantised weights, which are refused.
    is_float = not isinstance(tensor, Tensor) or tensor.is_floating_point()
    return not is_float and not name.endswith(".weight")


def _shards(index: Path) -> list[Path]:
    file_of_tensor = read_json(index).get("weight_map")
    if not isinstance(file_of_tensor, dict) or not file_of_tensor:
        raise ValueError(f"{index} has no weight_map, which names the file of each tensor: restore this file")
    names = sorted({str(name) for name in file_of_tensor.values()})
    if outside_names := [name for name in names if not name or Path(name).name != name]:
        raise ValueError(f"{index} names {outside_names[0]!r}, which is not a file in the same folder")
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise ValueError(f"{index} names {absent[0]}, but {len(absent)} of its {len(names)} files do not exist")
    return [index.parent / name for name in names]


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        reason = str(error).rpartition("header: ")[2]  # of "Error while deserializing header: header too small"
        reason = reason.partition(", expected")[0]  # of "unknown variant `F99`, expected one of `BOOL`, `F4`, ..."
        raise ValueError(
            f"{file} is not a safetensors file, or is truncated or damaged ({reason}): download it again"
        ) from None


def _load_pickle(file: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # unsupported pickle protocols raise an error after the warning
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        refused_name = re.search(r"GLOBAL (\S+)", str(error))  # the function that the pickle would run
        if refused_name is None:
            raise ValueError(f"{file} is not a file of tensors, or is damaged: download it again") from None
        raise ValueError(
            f"{file} is refused and was not executed: loading this pickle would run {refused_name[1]}, and only "
            "tensors are allowed; use a safetensors release instead"
        ) from None
    except Exception as error:  # a damaged file may raise anything, even an AssertionError
        reason = re.split("\n|: ", str(error))[0]
        raise ValueError(f"{file} is truncated or damaged ({reason}): download it again") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, but must map names to tensors")
    return dict(content)


def _check_tensors(file: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_sparse:
            raise ValueError(f"{file} must map names to dense tensors, but has the entry {str(name)!r}")
        if tensor.dtype not in _DTYPES:
            choices = ", ".join(map(dtype_name, _DTYPES))
            raise ValueError(f"{file}: {name} is stored as {dtype_name(tensor.dtype)}, but must be one of {choices}")
    return {name: tensor.detach() for name, tensor in content.items()}
