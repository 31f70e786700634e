"""The tokenizer that `tokenizer.kind` asks for: byte-level BPE to train, plain bytes, or a released one to load."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from slm.data.hub import require_network
from slm.data.tokenizer import CONFIGS, Tokenizer
from slm.runtime.progress import progress

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
"""What a tokenizer is read from, the first that exists."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
END = "<|endoftext|>"
# End tokens, most usual first, for a tokenizer.json without a config that names its own.
_USUAL_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")
_ACCEPTED = "a tokenizer.json, a tokenizer.model, or a folder with one"
_NUM_BYTES = 256
# How text is cut before merges, after tiktoken's cl100k (GPT-4) less the English contractions: a word with the one
# character before it, at most three digits, punctuation with the line end after it, runs of line ends, other white
# space. Measured on pydocs at 4096: 3.34 bytes per token; GPT-2's split (each class with the space before it) gives
# 3.19.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Texts = Callable[[], Iterator[list[str]]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A tokenizer to be made: `key` identifies it before it exists, `make` takes the training texts."""

    name: str
    key: Any
    make: Callable[[Texts], Tokenizer]


def plan_tokenizer(config: Mapping[str, Any]) -> Plan:
    """The plan of `conf/tokenizer/NAME.yaml`; released tokenizers are fetched here, before any other work.

    Raises ValueError for options that make no tokenizer.
    """
    kind = config["kind"]
    if kind == "bpe":
        return _plan_bpe(config["vocab_size"], config["train_bytes"])
    if kind == "bytes":
        return Plan(name="bytes", key=["bytes", 1], make=lambda texts: byte_tokenizer())
    if kind == "file":
        made = _released(config)
        key = ["file", made.fingerprint, made.bos_id, made.eos_id]
        return Plan(name=made.name, key=key, make=lambda texts: made)
    raise ValueError(f"tokenizer.kind={kind!r} is not one of bpe, bytes, file")


def _plan_bpe(vocab_size: int, train_bytes: int | None) -> Plan:
    if vocab_size < _NUM_BYTES + 1:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size} must be at least {_NUM_BYTES + 1}: the bytes and the end of text"
        )
    if train_bytes is not None and train_bytes < 1:
        raise ValueError(f"tokenizer.train_bytes={train_bytes} must be positive, or null for all of the text")
    return Plan(
        name=f"bpe-{vocab_size}",
        key=["bpe", vocab_size, train_bytes, _SPLIT, tokenizers.__version__],
        make=lambda texts: _train_bpe(texts(), vocab_size, train_bytes),
    )


def _train_bpe(texts: Iterator[list[str]], vocab_size: int, train_bytes: int | None) -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with progress(f"data: training BPE of {vocab_size}", None, "MB") as advance:
        inner.train_from_iterator(_first_bytes(texts, train_bytes, advance), trainer)
    return Tokenizer(f"bpe-{vocab_size}", inner.to_str(), eos=END)


def _first_bytes(
    texts: Iterator[list[str]], limit: int | None, advance: Callable[[float], None]
) -> Iterator[list[str]]:
    num_bytes = 0
    for batch in texts:
        yield batch
        size = sum(len(text.encode()) for text in batch)
        num_bytes += size
        advance(size / 1e6)
        if limit is not None and num_bytes >= limit:
            return


def byte_tokenizer() -> Tokenizer:
    """Id b is byte b, id 256 the end of text: BPE without merges."""
    # The character that byte-level vocabularies write for each byte: itself if printable, else from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    characters = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=characters, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END])
    return Tokenizer("bytes", inner.to_str(), eos=END)


def is_on_hub(config: Mapping[str, Any]) -> bool:
    """Whether the tokenizer is a repository of the hub, which `plan_tokenizer` fetches."""
    path = str(config.get("path"))
    is_hub_id = bool(_HUB_ID.fullmatch(path)) and not path.endswith((".json", ".model"))
    return config["kind"] == "file" and is_hub_id and not Path(path).exists()


def _released(config: Mapping[str, Any]) -> Tokenizer:
    path = str(config["path"])
    if path == "???":
        raise ValueError(f"tokenizer.path is not set; give {_ACCEPTED}, or a hub id")
    if is_on_hub(config):
        return load_tokenizer(_fetched(path, config["revision"]), name=path)
    return load_tokenizer(os.path.expanduser(path))


def _fetched(repository: str, revision: str | None) -> Path:
    """Folder of the tokenizer's files; what was fetched before is used without asking the network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    for name in TOKENIZER_FILES:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True)).parent
        except EntryNotFoundError:
            continue
    require_network(f"tokenizer.path={repository!r} does not exist locally and must be downloaded from the hub")
    for name in (*CONFIGS, *TOKENIZER_FILES):  # the tokenizer last: when it is in the cache, so are the others
        try:
            file = Path(hf_hub_download(repository, name, revision=revision))
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            raise ValueError(
                f"tokenizer.path={repository!r} cannot be fetched from the hub ({type(error).__name__}); "
                f"give the id of a repository that you may read"
            ) from None
        if name in TOKENIZER_FILES:
            return file.parent
    raise ValueError(
        f"tokenizer.path={repository!r} has no {' or '.join(TOKENIZER_FILES)} on the hub; give a repository with one"
    )


def load_tokenizer(path: Path | str, *, name: str | None = None, asked_by: str = "tokenizer.path") -> Tokenizer:
    """Load a tokenizer.json or tokenizer.model (SentencePiece), or the folder of one; of both, tokenizer.json.

    The config beside it names the begin and end tokens and says whether a text begins with the former. Raises
    ValueError, beginning with `asked_by`, when there is none, or when nothing says which token ends a text.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), path)
    if not file.is_file():
        problem = "has no tokenizer" if path.is_dir() else "does not exist"
        raise ValueError(f"{asked_by}={str(path)!r} {problem}; give {_ACCEPTED}")
    try:
        return _loaded(file, name or file.resolve().parent.name)
    except ValueError as error:
        raise ValueError(f"{asked_by}: {error}") from None


def _loaded(file: Path, name: str) -> Tokenizer:
    if file.stat().st_size < 1024 and file.read_bytes().startswith(LFS_POINTER):
        raise ValueError(f"{file} is a git-lfs pointer and not the file itself: run git lfs pull there")
    config = _config_beside(file.parent)
    if file.suffix == ".model":
        from slm.data.sentencepiece_model import convert

        return convert(file, name, config)
    try:
        content = file.read_text(encoding="utf-8")
        added = [token["content"] for token in json.loads(content)["added_tokens"]]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text; give a tokenizer.json") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is not a tokenizer.json of the tokenizers library") from None
    eos = config.get("eos_token") or next((token for token in _USUAL_ENDS if token in added), None)
    if eos is None:
        raise ValueError(f"nothing in {file.parent} says which token ends a text; name eos_token in {CONFIGS[0]}")
    try:
        return Tokenizer(name, content, bos=config.get("bos_token"), eos=eos, adds_bos=config.get("add_bos_token"))
    except ValueError:
        raise
    except Exception as error:  # the tokenizers library has no error class of its own
        raise ValueError(f"{file} cannot be read by the tokenizers library ({error})") from None


def _config_beside(folder: Path) -> dict[str, Any]:
    """`bos_token` and `eos_token` as text and `add_bos_token` as a bool, as far as a config in `folder` has them."""
    values: dict[str, Any] = {}
    for file in (folder / name for name in CONFIGS if (folder / name).is_file()):
        try:
            config = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{file} is not a JSON object; restore it") from None
        for role in ("bos_token", "eos_token"):
            token = config.get(role)
            if token and role not in values:
                values[role] = token.get("content") if isinstance(token, dict) else token
        if isinstance(config.get("add_bos_token"), bool):
            values["add_bos_token"] = config["add_bos_token"]
    return values
