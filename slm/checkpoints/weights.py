"""Tensors of a checkpoint folder: named, shaped and typed at once, read one at a time.

Notable: safetensors are read with plain file reads into memory of their own and not through a map, so that a loaded
model lies in ordinary pages and no second copy counts as this process's memory; pickles are read by
`torch.load(weights_only=True, mmap=True)`, which makes tensors and nothing else, and refuses the rest unexecuted.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm.checkpoints.architecture import read_json
from slm.data.vocabulary import LFS_POINTER

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
"""What weights are read from, the first that is there and can be used."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WEIGHTS, _AVERAGES = "decoder.", "average."  # modules of training, and so prefixes of names in its checkpoints
_LONGEST_HEADER = 100 << 20  # bytes; the safetensors library's own limit


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file; `read` makes it, contiguous and in memory of its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by our own names (Llama's without `model.`), and the files that hold them."""

    tensors: Mapping[str, Stored]
    files: tuple[Path, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most bytes."""
        sizes = Counter[torch.dtype]()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.dtype.itemsize * math.prod(tensor.shape)
        return sizes.most_common(1)[0][0] if sizes else torch.float32

    @property
    def dtypes(self) -> list[str]:
        """Names of all dtypes there are, sorted."""
        return sorted({dtype_name(tensor.dtype) for tensor in self.tensors.values()})


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "float16"."""
    return str(dtype).removeprefix("torch.")


def open_weights(folder: Path, fitted: Callable[[Weights], Weights]) -> tuple[Weights, tuple[str, ...]]:
    """The weights in a folder, from the first of `WEIGHT_FILES` that can be used; notes on those that cannot.

    `fitted` gives them under the names of the decoder that they are for, or raises `ValueError`. Raises that, of all
    files in one sentence, when none can be used: damaged, absent, more than tensors, or those of another decoder.
    """
    problems: list[str] = []
    for file in [folder / name for name in WEIGHT_FILES if (folder / name).exists()]:
        try:
            weights = fitted(_opened(file))
        except ValueError as error:
            problems.append(str(error))
        else:
            return weights, tuple(f"{file.name} was read, since another cannot be: {said}." for said in problems)
    raise ValueError("; and ".join(problems) or f"{folder} holds no weights: wants {' or '.join(WEIGHT_FILES)}")


def _opened(first: Path) -> Weights:
    """The tensors of a whole file, or of the shards that an index names."""
    files = _shards(first) if first.suffix == ".json" else [first]
    found: dict[str, Stored] = {}
    for file in files:
        found |= open_file(file)
    tensors = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    # Old releases carry the table of rotary frequencies, which follows from the config.
    return Weights(
        tensors={name: tensor for name, tensor in tensors.items() if ".rotary_emb." not in f".{name}"},
        files=tuple(files),
    )


def open_run_checkpoint(file: Path) -> Weights:
    """The decoder in a checkpoint of one of our runs, as it would be exported."""
    state = _load_pickle(file).get("state_dict")
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} is no checkpoint of a run: it has no state_dict")
    return Weights(tensors=_mapped(file, weights_to_export(state)), files=(file,))


def weights_to_export(state: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's weights in a `state_dict` of training: their averages where it keeps them, as validation does."""
    names = [name.removeprefix(_WEIGHTS) for name in state if name.startswith(_WEIGHTS)]
    return {name: state.get(_AVERAGES + buffer_of(name), state[_WEIGHTS + name]) for name in names}


def buffer_of(name: str) -> str:
    """Name of the buffer, in which no dot may be, that averages the parameter called `name`."""
    return name.replace(".", "/")


def open_file(file: Path) -> dict[str, Stored]:
    """Tensors of one file, by the names they have there."""
    _refuse_no_file(file)
    return _open_safetensors(file) if file.suffix == ".safetensors" else _mapped(file, _load_pickle(file))


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which says what file each tensor is in: restore it")
    names = sorted({str(name) for name in places.values()})
    outside = [name for name in names if not name or Path(name).name != name]
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, which is not a file beside it")
    absent = [name for name in names if not (index.parent / name).exists()]
    if absent:
        raise ValueError(f"{index} names {absent[0]}, and {len(absent)} of its {len(names)} files are not there")
    return [index.parent / name for name in names]


def _refuse_no_file(file: Path) -> None:
    try:
        with file.open("rb") as handle:
            start = handle.read(len(LFS_POINTER))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): restore it") from None
    if not start:
        raise ValueError(f"{file} is empty: download it again")
    if start == LFS_POINTER:
        raise ValueError(f"{file} is a pointer of git-lfs and not the weights: run git lfs pull in {file.parent}")


def _open_safetensors(file: Path) -> dict[str, Stored]:
    """Parse the header: eight bytes of its length, JSON, then the tensors without gaps (safetensors' own README)."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        prefix = handle.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= _LONGEST_HEADER:
            raise ValueError(f"{file} is not a safetensors file, or is truncated: download it again")
        text = handle.read(length)
    try:
        spans = {name: _described(entry) for name, entry in json.loads(text).items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = "is truncated" if len(text) < length else "has no header of safetensors"
        raise ValueError(f"{file} {problem}: download it again") from None
    start = 8 + length
    wanted = start + max((stop for _, _, _, stop in spans.values()), default=0)
    if size < wanted:
        raise ValueError(f"{file} is truncated: it has {size:,} of {wanted:,} bytes; download it again")
    return {name: _span(file, name, start, *span) for name, span in spans.items()}


def _described(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, first and last byte + 1 of a header's entry. Raises one of several errors for what is none."""
    shape, (first, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, stop)):
        raise ValueError
    return str(entry["dtype"]), shape, first, stop


def _span(file: Path, name: str, base: int, dtype_code: str, shape: tuple[int, ...], first: int, stop: int) -> Stored:
    if dtype_code not in _DTYPES:
        raise ValueError(f"{file}: {name} is stored as {dtype_code}, and what is read is {', '.join(_DTYPES)}")
    dtype = _DTYPES[dtype_code]
    if stop - first != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{file}: the header gives {name} {stop - first} bytes, which is not its shape {list(shape)}")

    def read() -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        with file.open("rb") as handle:
            handle.seek(base + first)
            got = handle.readinto(tensor.view(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
        if got != stop - first:
            raise ValueError(f"{file} was changed while it was read: load it again")
        return tensor

    return Stored(shape=shape, dtype=dtype, read=read)


def _load_pickle(file: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about the protocol of a pickle that is then refused
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL (\S+)", str(error))
        if wants is None:
            raise ValueError(f"{file} is not a file of tensors, or is damaged: download it again") from None
        raise ValueError(
            f"{file} is refused and was not executed: it is a pickle that would run {wants[1]}, where weights are "
            "tensors only; use a release in safetensors"
        ) from None
    except Exception as error:  # of a damaged file anything, an AssertionError too
        reason = str(error).partition("\n")[0].partition(": ")[0]
        raise ValueError(f"{file} is truncated or damaged ({reason}): download it again") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__} where it must hold tensors by name")
    return dict(content)


def _mapped(file: Path, content: Mapping[str, Any]) -> dict[str, Stored]:
    odd = [
        str(name)
        for name, tensor in content.items()
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_meta or tensor.is_sparse
    ]
    if odd:
        raise ValueError(f"{file} must hold tensors by name, and {odd[0]!r} is none")
    quantised = [f"{name} as {dtype_name(t.dtype)}" for name, t in content.items() if t.dtype not in _DTYPES.values()]
    if quantised:
        raise ValueError(f"{file} stores {quantised[0]}; what is read is float64, float32, float16, bfloat16")

    def reader(tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor.detach().clone(memory_format=torch.contiguous_format)

    return {
        name: Stored(shape=tuple(tensor.shape), dtype=tensor.dtype, read=reader(tensor))
        for name, tensor in content.items()
    }
