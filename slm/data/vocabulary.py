"""Making the tokenizer that the config asks for: the registry that `tokenizer.kind` names."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from slm.data.hub import require_network
from slm.data.progress import progress
from slm.data.tokenizer import END, TOKENIZER_FILES, Tokenizer, load_tokenizer

_ALPHABET = 256
# How text is cut before merges, after tiktoken's cl100k (GPT-4) less the English contractions: a word with the one
# character before it, at most three digits, punctuation with the line end after it, runs of line ends, other white
# space. Measured on pydocs at 4096: 3.34 bytes a token, where GPT-2's split (each class with the space before it)
# gives 3.19.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")  # data only: no code

Texts = Callable[[], Iterator[list[str]]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A tokenizer to be: `key` identifies it before it exists, `make` needs the training texts to train on."""

    key: Any
    make: Callable[[Texts], Tokenizer]


def plan_tokenizer(config: Mapping[str, Any]) -> Plan:
    """The plan of `conf/tokenizer/NAME.yaml`; released tokenizers are fetched here, before any other work.

    Raises ValueError for options that make no tokenizer.
    """
    kinds = {"bpe": _plan_bpe, "bytes": _plan_bytes, "file": _plan_file}
    if config["kind"] not in kinds:
        raise ValueError(f"tokenizer.kind={config['kind']!r} is not one of {', '.join(kinds)}")
    return kinds[config["kind"]](config)


def is_on_hub(config: Mapping[str, Any]) -> bool:
    """Whether the tokenizer is a repository of the hub, which `plan_tokenizer` fetches."""
    path = str(config.get("path"))
    named = _HUB_ID.fullmatch(path) and not path.endswith((".json", ".model"))
    return config["kind"] == "file" and bool(named) and not Path(path).exists()


def _plan_bpe(config: Mapping[str, Any]) -> Plan:
    vocab_size, train_bytes = config["vocab_size"], config["train_bytes"]
    if vocab_size < _ALPHABET + 1:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size} wants to be at least {_ALPHABET + 1}: the bytes and the end of text"
        )
    if train_bytes is not None and train_bytes < 1:
        raise ValueError(f"tokenizer.train_bytes={train_bytes} wants to be positive, or null for all of the text")
    return Plan(
        key=["bpe", vocab_size, train_bytes, _SPLIT, tokenizers.__version__],
        make=lambda texts: _train_bpe(texts(), vocab_size, train_bytes),
    )


def _train_bpe(texts: Iterator[list[str]], vocab_size: int, train_bytes: int | None) -> Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with progress(f"training BPE of {vocab_size}", None, "MB") as advance:
        inner.train_from_iterator(_first_bytes(texts, train_bytes, advance), trainer)
    return Tokenizer(f"bpe-{vocab_size}", inner.to_str(), eos=END)


def _first_bytes(
    texts: Iterator[list[str]], limit: int | None, advance: Callable[[float], None]
) -> Iterator[list[str]]:
    done = 0
    for batch in texts:
        yield batch
        size = sum(len(text.encode()) for text in batch)
        done += size
        advance(size / 1e6)
        if limit is not None and done >= limit:
            return


def _plan_bytes(config: Mapping[str, Any]) -> Plan:
    return Plan(key=["bytes", 1], make=lambda texts: _byte_tokenizer())


def _byte_tokenizer() -> Tokenizer:
    """Id b is byte b, id 256 the end of text: BPE without merges."""
    inner = tokenizers.Tokenizer(models.BPE(vocab=_byte_characters(), merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END])
    return Tokenizer("bytes", inner.to_str(), eos=END)


def _byte_characters() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte: itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_ALPHABET) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {characters[byte]: byte for byte in range(_ALPHABET)}


def _plan_file(config: Mapping[str, Any]) -> Plan:
    path = str(config["path"])
    if path == "???":
        raise ValueError(
            "tokenizer.path is not set; wants a tokenizer.json or tokenizer.model, a folder of one, or a hub id"
        )
    if is_on_hub(config):
        tokenizer = load_tokenizer(_fetched(path, config["revision"]), name=path)
    else:
        tokenizer = load_tokenizer(Path(os.path.expanduser(path)))
    return Plan(key=["file", tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id], make=lambda texts: tokenizer)


def _fetched(repository: str, revision: str | None) -> Path:
    """Folder of the tokenizer's files; what was fetched before is used without asking the network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    for name in TOKENIZER_FILES:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True)).parent
        except EntryNotFoundError:
            continue
    require_network(f"tokenizer.path={repository!r} is no path that exists, and as a hub id wants to be fetched")
    for name in (*_HUB_CONFIGS, *TOKENIZER_FILES):  # the tokenizer last: when it is there, so are the others
        try:
            file = Path(hf_hub_download(repository, name, revision=revision))
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            raise ValueError(
                f"tokenizer.path={repository!r} cannot be fetched from the hub ({type(error).__name__}); "
                f"wants the id of a repository that you may read"
            ) from None
        if name in TOKENIZER_FILES:
            return file.parent
    raise ValueError(
        f"tokenizer.path={repository!r} has no {' or '.join(TOKENIZER_FILES)} on the hub; wants a repository with one"
    )
