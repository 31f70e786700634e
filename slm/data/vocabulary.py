"""Make the tokenizer that `tokenizer.kind` names: train byte-level BPE, use plain bytes, or load a released one."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from slm.data.chat_template import TEMPLATE_FILE, load_chat_template
from slm.data.hub import require_network
from slm.data.tokenizer import CONFIGS, Tokenizer
from slm.runtime.progress import progress
from slm.runtime.settings import prefixed

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")  # if a folder has both, the first is read
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
END = "<|endoftext|>"
# End tokens, most common first, for a tokenizer.json without a config that names its end token.
_COMMON_END_TOKENS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")
_ACCEPTED = "a tokenizer.json, a tokenizer.model, or a folder with one of these files"
_NUM_BYTES = 256
# This pattern cuts text into pieces, and BPE merges nothing across them: a word with the one character before it, at
# most three digits, punctuation with the line end after it, runs of line ends, other white space. It is the pattern of
# tiktoken's cl100k (GPT-4) without English contractions. On pydocs with 4,096 tokens it gives 3.34 bytes per token;
# GPT-2's pattern, where a piece of any class includes the space before it, gives 3.19.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|"
SPLITS = {"slm": _SPLIT, "llama3": _CONTRACTIONS + _SPLIT}
"""Values of `tokenizer.split`. With the contractions it is cl100k's and Llama 3's, which other engines know."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Batches = Iterator[list[str]]
Texts = Callable[[], Batches]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to make a tokenizer: `make` takes the training texts, and `key` identifies the result before it is made."""

    name: str
    key: Any
    make: Callable[[Texts], Tokenizer]
    is_trained: bool = False  # whether the texts affect the tokenizer
    chat_template: str | None = None
    """The template that comes with a released tokenizer."""


def plan_tokenizer(config: Mapping[str, Any]) -> Plan:
    """Return the plan for a tokenizer config; downloads a released tokenizer. Raises ValueError for wrong options."""
    kind = config["kind"]
    if kind == "bpe":
        return _plan_bpe(config["vocab_size"], config["train_bytes"], config.get("split", "slm"))
    if kind == "bytes":
        return Plan(name="bytes", key=["bytes", 1], make=lambda texts: byte_tokenizer())
    if kind == "file":
        path = str(config["path"])
        if path == "???":
            raise ValueError(f"tokenizer.path is not set; give {_ACCEPTED}, or a hub id")
        if is_on_hub(config):
            released = load_tokenizer(_fetch(path, config["revision"]), name=path)
        else:
            released = load_tokenizer(os.path.expanduser(path))
        key = ["file", released.fingerprint, released.bos_id, released.eos_id]
        return Plan(name=released.name, key=key, make=lambda texts: released, chat_template=released.chat_template)
    raise ValueError(f"tokenizer.kind={kind!r} is not one of bpe, bytes, file")


def _plan_bpe(vocab_size: int, train_bytes: int | None, split: str) -> Plan:
    if vocab_size < _NUM_BYTES + 1:
        raise ValueError(f"tokenizer.vocab_size={vocab_size} must be at least 257: 256 bytes and the end token")
    if train_bytes is not None and train_bytes < 1:
        raise ValueError(f"tokenizer.train_bytes={train_bytes} must be positive, or null for all of the text")
    return Plan(
        name=f"bpe-{vocab_size}",
        key=["bpe", vocab_size, train_bytes, SPLITS[split], tokenizers.__version__],
        make=lambda texts: _train_bpe(texts(), vocab_size, train_bytes, SPLITS[split]),
        is_trained=True,
    )


def _train_bpe(texts: Batches, vocab_size: int, train_bytes: int | None, pattern: str) -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    with progress(f"data: training BPE of {vocab_size}", None, "MB") as advance:
        inner.train_from_iterator(_first_batches(texts, train_bytes, advance), trainer)
    return Tokenizer(f"bpe-{vocab_size}", inner.to_str(), eos=END)


def _first_batches(batches: Batches, max_bytes: int | None, advance: Callable[[float], None]) -> Batches:
    num_bytes = 0
    for batch in batches:
        yield batch
        batch_bytes = sum(len(text.encode()) for text in batch)
        num_bytes += batch_bytes
        advance(batch_bytes / 1e6)
        if max_bytes is not None and num_bytes >= max_bytes:
            return


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer in which id b is byte b and id 256 ends a text: BPE without merges."""
    # Byte-level vocabularies write a printable byte as its own character, and the others as U+0100, U+0101, ...
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    ids = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(unprintable)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END])
    return Tokenizer("bytes", inner.to_str(), eos=END)


def is_on_hub(config: Mapping[str, Any]) -> bool:
    """Whether the config names a repository of the hub, which `plan_tokenizer` must download."""
    path = str(config.get("path"))
    is_hub_id = bool(_HUB_ID.fullmatch(path)) and not path.endswith((".json", ".model"))
    return config["kind"] == "file" and is_hub_id and not Path(path).exists()


def _fetch(repository: str, revision: str | None) -> Path:
    """Download the tokenizer's files, unless an earlier call did; returns their folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    for name in TOKENIZER_FILES:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True)).parent
        except EntryNotFoundError:  # not downloaded yet
            continue
    require_network(f"tokenizer.path={repository!r} does not exist locally and must be downloaded from the hub")
    # The tokenizer last, so that a cache with it has the configs and the template too.
    for name in (*CONFIGS, TEMPLATE_FILE, *TOKENIZER_FILES):
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
        f"tokenizer.path={repository!r} has no {' or '.join(TOKENIZER_FILES)} on the hub; give another repository"
    )


def load_tokenizer(path: Path | str, *, name: str | None = None, asked_by: str = "tokenizer.path") -> Tokenizer:
    """Load a tokenizer.json, a tokenizer.model (SentencePiece), or a folder with one of them (if both, the .json).

    The config in the same folder names the begin and end tokens and says whether a text begins with the begin token.
    Raises ValueError that names the config key `asked_by` if there is no tokenizer, or nothing says what ends a text.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        file = next((path / name for name in TOKENIZER_FILES if (path / name).is_file()), path)
    if not file.is_file():
        problem = "has no tokenizer" if path.is_dir() else "does not exist"
        raise ValueError(f"{asked_by}={str(path)!r} {problem}; give {_ACCEPTED}")
    with prefixed(asked_by):
        tokenizer = _load_file(file, name or file.resolve().parent.name)
        tokenizer.chat_template = load_chat_template(file.parent)
    return tokenizer


def _load_file(file: Path, name: str) -> Tokenizer:
    if file.stat().st_size < 1024 and file.read_bytes().startswith(LFS_POINTER):
        raise ValueError(f"{file} is a git-lfs pointer and not the file itself: run git lfs pull there")
    config = _read_configs(file.parent)
    if file.suffix == ".model":
        from slm.data.sentencepiece_model import convert

        return convert(file, name, config)
    try:
        content = file.read_text(encoding="utf-8")
        added_tokens = [token["content"] for token in json.loads(content)["added_tokens"]]
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text; give a tokenizer.json") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is not a tokenizer.json of the tokenizers library") from None
    eos = config.get("eos_token") or next((token for token in _COMMON_END_TOKENS if token in added_tokens), None)
    if eos is None:
        raise ValueError(f"nothing in {file.parent} says which token ends a text; name eos_token in {CONFIGS[0]}")
    try:
        return Tokenizer(name, content, bos=config.get("bos_token"), eos=eos, adds_bos=config.get("add_bos_token"))
    except ValueError:
        raise
    except Exception as error:  # the tokenizers library has no error class of its own
        raise ValueError(f"{file} cannot be read by the tokenizers library ({error})") from None


def _read_configs(folder: Path) -> dict[str, Any]:
    """Return `bos_token` and `eos_token` as text and `add_bos_token` as a bool, each only if a config states it."""
    settings: dict[str, Any] = {}
    for file in (folder / name for name in CONFIGS if (folder / name).is_file()):
        try:
            config = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{file} is not a JSON object; restore it") from None
        for role in ("bos_token", "eos_token"):
            token = config.get(role)
            if token and role not in settings:
                settings[role] = token.get("content") if isinstance(token, dict) else token
        if isinstance(config.get("add_bos_token"), bool):
            settings["add_bos_token"] = config["add_bos_token"]
    return settings
