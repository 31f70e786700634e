"""Perplexity of a decoder on a stream of tokens: one entry of `perplexity_results`.

Notable: hidden states are computed for all positions, head and loss only for those that a window scores. Losses are
summed in float64. Rows of a batch do not see each other and attention is causal, so windows that are padded on the
right to the longest of their batch score as they would alone.

Legend: B windows of a batch, T tokens of a window, D hidden, N scored tokens.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm.data.loader import document_numbers
from slm.evaluation.bootstrap import make_blocks, merge_blocks, ratio_errors
from slm.evaluation.encode import Stream
from slm.evaluation.protocols import Protocol, Window
from slm.model import Decoder
from slm.model.loss import token_losses


def perplexity(
    decoder: Decoder,
    stream: Stream,
    protocol: Protocol,
    *,
    batch_tokens: int,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Score a stream by a protocol; at most `batch_tokens` tokens (but at least a window) go through at once.

    `autocast` is the dtype of matmuls where it is not the weights'. `progress` is called with the tokens scored since
    its last call; they add up to `stream.num_scored`. Values that are not finite are null in the answer, with a note.
    Raises ValueError, before any work, for a window or token ids that the decoder has no room for.
    """
    protocol.check(decoder.config)
    largest_id, num_ids = int(stream.tokens.max()), decoder.config.vocab_size
    if largest_id >= num_ids:
        raise ValueError(
            f"the tokenizer gave id {largest_id} for {stream.name} and the checkpoint's vocabulary has {num_ids} "
            "(vocab_size): tokenizer and weights are not of one model"
        )
    windows = protocol.windows(len(stream.tokens))
    nats = np.zeros(len(stream.tokens))
    device = decoder.embed_tokens.weight.device
    casting = torch.autocast(device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False)
    with torch.inference_mode(), casting:
        for inputs_BT, targets_BT in _batches(stream, windows, max(1, batch_tokens // protocol.max_length)):
            wanted_BT = targets_BT >= 0
            if not wanted_BT.any():
                continue
            nats[targets_BT[wanted_BT]] = _losses(decoder, stream, inputs_BT, targets_BT, wanted_BT)
            progress(int(wanted_BT.sum()))
    return _entry(stream, protocol, nats, windows)


def _batches(stream: Stream, windows: list[Window], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of windows, each (B, T): token ids that go in, and positions in the stream that are scored.

    A position of -1 is not scored: context, padding, and tokens that the stream leaves out.
    """
    for first in range(0, len(windows), rows):
        batch = windows[first : first + rows]
        width = max(window.stop - window.start for window in batch)
        inputs_BT = np.zeros((len(batch), width), dtype=np.int64)
        targets_BT = np.full((len(batch), width), -1)
        for row, (start, stop, scored) in enumerate(batch):
            inputs_BT[row, : stop - start] = stream.tokens[start:stop]
            positions = np.arange(scored, stop + 1)
            targets_BT[row, positions - start - 1] = np.where(stream.scored[positions], positions, -1)
        yield inputs_BT, targets_BT


def _losses(
    decoder: Decoder, stream: Stream, inputs_BT: np.ndarray, targets_BT: np.ndarray, wanted_BT: np.ndarray
) -> np.ndarray:
    """Nats (N,) of the wanted positions."""

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(decoder.embed_tokens.weight.device)

    tokens_BT, documents_BT = on_device(inputs_BT), None
    if stream.separator is not None:
        documents_BT = document_numbers(tokens_BT, stream.separator)
    hidden_ND = decoder.hidden(tokens_BT, documents_BT=documents_BT)[on_device(wanted_BT)]
    targets_N = on_device(stream.tokens[targets_BT[wanted_BT]])
    return token_losses(hidden_ND, decoder.head_weight, targets_N).double().cpu().numpy()


def _entry(stream: Stream, protocol: Protocol, nats: np.ndarray, windows: list[Window]) -> dict[str, Any]:
    scored = stream.scored
    total, tokens, num_bytes = float(nats[scored].sum()), stream.num_scored, int(stream.token_bytes[scored].sum())
    notes = list(stream.notes)
    if len(windows) == 1:
        notes.append(
            f"The text has {len(stream.tokens):,} tokens, no more than one window: "
            "tokens have the context that there is."
        )
    if not math.isfinite(total):
        bad = int((~np.isfinite(nats[scored])).sum())
        notes.append(f"The loss of {bad:,} of {tokens:,} tokens is not finite, so there are no figures.")
    block_N, blocks = make_blocks(stream.document[scored])
    nats_K = np.bincount(block_N, nats[scored])
    sizes_KM = np.column_stack([np.bincount(block_N), np.bincount(block_N, stream.token_bytes[scored])])
    errors = ratio_errors(nats_K, sizes_KM).tolist()
    return {
        "data": stream.name,
        "data_fingerprint": stream.fingerprint,
        "segmentation": stream.segmentation,
        "protocol": protocol.name,
        "max_length": protocol.max_length,
        "stride": protocol.stride,
        "loss": _finite(total / tokens),
        "perplexity": _exp(total / tokens),
        "bits_per_byte": _finite(total / num_bytes / math.log(2)) if num_bytes else None,
        "se_loss": _finite(errors[0]),
        "se_bits_per_byte": _finite(errors[1] / math.log(2)),
        "se_method": f"block bootstrap over {blocks}",
        "tokens": tokens,
        "bytes": num_bytes,
        "words": stream.words,
        "word_perplexity": _exp(total / stream.words) if stream.words else None,
        "windows": len(windows),
        "in_training": stream.in_training,
        "notes": notes,
        "blocks": _stored_blocks(nats_K, sizes_KM) if math.isfinite(total) else None,
    }


def _stored_blocks(nats_K: np.ndarray, sizes_KM: np.ndarray) -> dict[str, list[Any]]:
    """Sums over blocks, for errors of differences; nats to the seven digits that a float32 loss has."""
    sums = merge_blocks(np.column_stack([nats_K, sizes_KM]))
    tokens, num_bytes = sums[:, 1:].astype(np.int64).T.tolist()
    return {"nats": [float(f"{value:.7g}") for value in sums[:, 0]], "tokens": tokens, "bytes": num_bytes}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _exp(loss: float) -> float | None:
    """exp(loss), None if a float64 cannot hold it."""
    return math.exp(loss) if loss < 700 else None
