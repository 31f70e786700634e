"""Read a split of a corpus, stored in shards of bounded size, as one long array of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHARD_TOKENS = 100_000_000  # 200 MB of uint16: easy to copy, and 10B tokens need only 100 files
_TOTALS = ("tokens", "bytes", "documents")
MAX_OPEN_SHARDS = 256  # each takes a file descriptor, and many systems allow a process only 1,024


class TokenStream:
    """One array of `num_tokens` token ids, in memory-mapped shards.

    `num_bytes` is the UTF-8 length of all `num_documents` documents, without special tokens. Shards are opened at first
    use, at most `MAX_OPEN_SHARDS` at a time. A pickled stream has no open shards, so it is small.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Open the stream of a split; `facts` is its entry in the manifest of `folder` (made by `split_facts`)."""
        self.num_tokens: int = facts["tokens"]
        self.num_bytes: int = facts["bytes"]
        self.num_documents: int = facts["documents"]
        self._dtype = np.dtype(facts["dtype"])
        self._paths = [folder / shard["file"] for shard in facts["shards"]]
        self._shard_bounds = np.cumsum([0] + [shard["tokens"] for shard in facts["shards"]])  # all starts, then the end
        self._open_shards: dict[int, np.memmap] = {}

    @classmethod
    def joined(cls, streams: Sequence["TokenStream"]) -> "TokenStream":
        """Return the streams, which have one tokenizer, as one: the tokens of each follow those of the one before."""
        totals = {name: sum(getattr(stream, f"num_{name}") for stream in streams) for name in _TOTALS}
        joined = cls(Path(), {**totals, "dtype": streams[0]._dtype, "shards": []})
        joined._paths = [path for stream in streams for path in stream._paths]
        joined._shard_bounds = np.cumsum([0, *(size for stream in streams for size in np.diff(stream._shard_bounds))])
        return joined

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) as a new array of the stored dtype. Raises IndexError outside the stream."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"[{start}, {stop}) is outside a stream of {self.num_tokens} tokens")
        # The shard that holds token `start`, and one past the shard that holds token `stop` - 1.
        first_shard = int(np.searchsorted(self._shard_bounds, start, side="right")) - 1
        end_shard = int(np.searchsorted(self._shard_bounds, stop))
        parts = [np.empty(0, self._dtype)]  # np.concatenate needs an array even if start == stop
        for index in range(first_shard, end_shard):
            shard_start = self._shard_bounds[index]
            parts.append(self._shard(index)[max(0, start - shard_start) : stop - shard_start])
        return np.concatenate(parts)

    def num_windows(self, sequence_length: int) -> int:
        """Return the number of windows to train on: complete ones, [i*T, i*T + T + 1) for T = `sequence_length`."""
        return max(0, (self.num_tokens - 1) // sequence_length)

    def _shard(self, index: int) -> np.ndarray:
        shard = self._open_shards.pop(index, None)  # inserted again below, so that the dict is in the order of last use
        if shard is None:
            if len(self._open_shards) >= MAX_OPEN_SHARDS:
                least_recently_read = next(iter(self._open_shards))
                del self._open_shards[least_recently_read]
            shard = np.memmap(self._paths[index], dtype=self._dtype, mode="r")
        self._open_shards[index] = shard
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}}


class ShardWriter:
    """Writes tokens to `{name}-000.bin`, `{name}-001.bin`, ... of at most `shard_tokens` tokens each."""

    def __init__(self, folder: Path, name: str, vocab_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder, self.name, self.shard_tokens = folder, name, shard_tokens
        self.dtype = token_dtype(vocab_size)
        self.shards: list[dict[str, Any]] = []

    def write(self, tokens: Iterable[int]) -> None:
        """Append token ids; a new shard begins whenever the last one is full."""
        remaining = np.fromiter(tokens, dtype=self.dtype)
        while len(remaining):
            if not self.shards or self.shards[-1]["tokens"] == self.shard_tokens:
                self.shards.append({"file": f"{self.name}-{len(self.shards):03d}.bin", "tokens": 0})
                (self.folder / self.shards[-1]["file"]).unlink(missing_ok=True)  # left by a build that was killed
            shard = self.shards[-1]
            part, remaining = np.split(remaining, [self.shard_tokens - shard["tokens"]])
            with (self.folder / shard["file"]).open("ab") as file:
                part.tofile(file)
            shard["tokens"] += len(part)


def split_facts(shards: list[dict[str, Any]], vocab_size: int, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the manifest's entry for a split; `counts` holds the numbers of `documents` and of `bytes` of text."""
    return {
        "tokens": sum(shard["tokens"] for shard in shards),
        "bytes": counts["bytes"],
        "documents": counts["documents"],
        "dtype": token_dtype(vocab_size).str,
        "shards": shards,
    }


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the integer type in which token ids are stored."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
