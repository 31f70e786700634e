"""Random decoders and streams of tokens, small enough for tests."""

import copy
from typing import Any

import numpy as np
import torch

from slm.evaluation.encode import Stream
from slm.model import Decoder, ModelConfig
from tests.seeds import seeded

VOCAB = 120
SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
SHAPE |= {"intermediate_size": 64, "max_position_embeddings": 64}


def random_decoder(seed: int = 0, **changes: Any) -> Decoder:
    """Of SHAPE with `changes`; its weights are large, so that context matters."""
    torch.manual_seed(seeded(seed))
    return Decoder(ModelConfig(**SHAPE | {"init_std": 0.25} | changes)).eval()


def in_float64(decoder: Decoder) -> Decoder:
    return copy.deepcopy(decoder).double()


def random_stream(length: int, *, seed: int = 0, vocab_size: int = VOCAB, **changes: Any) -> Stream:
    """Scored but for its first token, in documents of 9 tokens."""
    rng = np.random.default_rng(seeded(seed))
    fields = {"name": "text", "fingerprint": "f", "tokens": rng.integers(0, vocab_size, length)}
    fields |= {"is_scored": np.arange(length) > 0, "token_bytes": rng.integers(1, 6, length)}
    fields |= {"document": np.arange(length, dtype=np.int32) // 9, "words": 7, "notes": ("As given.",)}
    return Stream(**fields | changes)


def window_documents(windows: int) -> np.ndarray:
    """The documents of a stream of `windows` times 64 tokens and one more: each is what one window predicts."""
    return (np.arange(64 * windows + 1, dtype=np.int32) - 1).clip(0) // 64


def cut_windows(tokens: np.ndarray) -> torch.Tensor:
    """(windows, 65): those of such a stream, with the token before each."""
    return torch.from_numpy(np.lib.stride_tricks.sliding_window_view(tokens, 65)[::64].copy())
