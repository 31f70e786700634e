"""Measure the perplexity of a model on a stream of tokens: cut the stream into windows, and score each token once.

Both protocols score every token but the first exactly once; they differ in how much context a token has. The inputs of
a window are the tokens that the model reads; its last target is not an input. With L = max_length and S = stride:

| protocol        | inputs of window i      | scored                            | tokens of context per target   |
|-----------------|-------------------------|-----------------------------------|--------------------------------|
| sliding         | tokens iS .. iS + L - 2 | targets not scored before         | L - S .. L - 1 (i = 0: from 1) |
| non_overlapping | tokens iL .. iL + L - 1 | tokens iL + 1 .. iL + L           | 1 .. L                         |

`sliding` is the loop of the transformers documentation ("Perplexity of fixed-length models"): a window holds L tokens,
of which the last is only a target. `non_overlapping` is the protocol of validation in training, and of the disjoint
rolling windows of the lm-evaluation-harness.

Hidden states are computed for all positions, head and loss only for scored positions; losses are summed in float64.
Rows of a batch do not see each other and attention is causal, so padding on the right does not change a window's score.

Legend: B windows of a batch, T tokens of a window, D hidden, N scored tokens, K blocks of text, M = 2 (tokens, bytes).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slm.data.loader import document_numbers
from slm.data.packing import pack
from slm.evaluation.bootstrap import make_blocks, merge_blocks, ratio_errors
from slm.evaluation.encode import Stream
from slm.model.interface import CausalLM, Shape


class Window(NamedTuple):
    """A window with tokens [start, stop) as inputs. It scores the predictions of tokens [first_scored, stop]."""

    start: int
    stop: int
    first_scored: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The windows in which a text is scored. Raises ValueError if windows of protocol sliding would not overlap."""

    name: Literal["sliding", "non_overlapping"]
    max_length: int  # number of tokens of a window
    stride: int  # tokens from the start of a window to the start of the next; `max_length` if windows do not overlap

    def __post_init__(self) -> None:
        if self.name == "sliding" and self.stride >= self.max_length:
            raise ValueError(
                f"stride={self.stride} of protocol sliding must be smaller than max_length={self.max_length}: "
                "with this stride the windows do not overlap, which is protocol non_overlapping"
            )

    def check(self, config: Shape) -> None:
        """Raise ValueError if the windows are longer than the context of the model."""
        if self.max_length > config.max_position_embeddings:
            raise ValueError(
                f"max_length={self.max_length} of protocol {self.name} is longer than the "
                f"{config.max_position_embeddings} positions of the checkpoint (max_position_embeddings): "
                f"give max_length={config.max_position_embeddings} or less"
            )

    def windows(self, num_tokens: int) -> list[Window]:
        """Return the windows over `num_tokens` tokens, in order. Exactly one window scores each token but the first."""
        if self.name == "non_overlapping":
            starts = range(0, num_tokens - 1, self.max_length)
            return [Window(start, min(start + self.max_length, num_tokens - 1), start + 1) for start in starts]
        windows: list[Window] = []
        first_scored = 1
        start = 0
        while first_scored < num_tokens:
            end = min(start + self.max_length, num_tokens)
            windows.append(Window(start, end - 1, first_scored))
            first_scored = end
            start += self.stride
        return windows


def perplexity(
    model: CausalLM,
    stream: Stream,
    protocol: Protocol,
    *,
    batch_tokens: int,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Score a stream under a protocol; return an entry of `perplexity_results` (docs/evaluation_results.md).

    A batch has at most `batch_tokens` tokens, but at least one window. `autocast` is the dtype of matmuls (None: the
    dtype of the weights). `progress` is called with the number of tokens scored since its last call. Values that are
    not finite become null, with a note. Raises ValueError if windows or token ids do not fit the model.
    """
    protocol.check(model.config)
    largest_id, vocab_size = int(stream.tokens.max()), model.config.vocab_size
    if largest_id >= vocab_size:
        raise ValueError(
            f"the tokenizer gave id {largest_id} for {stream.name}, but the checkpoint's vocab_size is {vocab_size}: "
            "tokenizer and weights belong to different models"
        )
    stream, windows = _windows(stream, protocol)
    nats = np.zeros(len(stream.tokens))  # loss of each position
    autocasting = torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False)
    with torch.inference_mode(), autocasting:
        for inputs_BT, positions_BT in _batches(stream, windows, max(1, batch_tokens // protocol.max_length)):
            is_scored_BT = positions_BT >= 0
            if is_scored_BT.any():
                nats[positions_BT[is_scored_BT]] = _losses(model, stream, inputs_BT, positions_BT, is_scored_BT)
                progress(int(is_scored_BT.sum()))
    return _entry(stream, protocol, nats, windows)


def _windows(stream: Stream, protocol: Protocol) -> tuple[Stream, list[Window]]:
    """Return the windows of a stream. Those of conversations leave out what training leaves out.

    Conversations that must not see each other have windows of their own, so that any model can be scored on them.
    """
    if stream.conversation_starts is None:
        return stream, protocol.windows(len(stream.tokens))
    scored = np.flatnonzero(stream.is_scored)
    packing = pack(stream.conversation_starts, scored, protocol.max_length, alone=stream.masks_conversations)
    bounds = list(zip(packing.starts.tolist(), packing.stops.tolist(), strict=True))
    is_inside = np.zeros(len(stream.tokens), dtype=bool)
    for start, stop in bounds:
        is_inside[start:stop] = True
    if not bounds:
        given = f"perplexity.{protocol.name}.max_length={protocol.max_length}"
        raise ValueError(f"{stream.name}: no answer begins within {given} tokens: give more")
    windows = [Window(start, stop - 1, start + 1) for start, stop in bounds]
    return replace(stream, is_scored=stream.is_scored & is_inside), windows


def _batches(stream: Stream, windows: list[Window], num_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield inputs (token ids) and targets (positions in the stream), both (B, T), for up to `num_rows` windows.

    A position of -1 is not scored: context, padding, and tokens that the stream excludes.
    """
    for first_row in range(0, len(windows), num_rows):
        batch = windows[first_row : first_row + num_rows]
        T = max(window.stop - window.start for window in batch)
        inputs_BT = np.zeros((len(batch), T), dtype=np.int64)
        positions_BT = np.full((len(batch), T), -1)
        for row, (start, stop, first_scored) in enumerate(batch):
            inputs_BT[row, : stop - start] = stream.tokens[start:stop]
            positions = np.arange(first_scored, stop + 1)
            # The token at position p is predicted from the inputs up to p - 1.
            positions_BT[row, positions - 1 - start] = np.where(stream.is_scored[positions], positions, -1)
        yield inputs_BT, positions_BT


def _losses(
    model: CausalLM, stream: Stream, inputs_BT: np.ndarray, positions_BT: np.ndarray, is_scored_BT: np.ndarray
) -> np.ndarray:
    """Return the losses (N,) of the scored positions, in nats."""

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(model.device)

    tokens_BT = on_device(inputs_BT)
    documents_BT = None if stream.separator is None else document_numbers(tokens_BT, stream.separator)
    hidden_ND = model.hidden(tokens_BT, documents_BT=documents_BT)[on_device(is_scored_BT)]
    targets_N = on_device(stream.tokens[positions_BT[is_scored_BT]])
    return model.losses(hidden_ND, targets_N).cpu().double().numpy()


def _entry(stream: Stream, protocol: Protocol, nats: np.ndarray, windows: list[Window]) -> dict[str, Any]:
    """Return an entry of `perplexity_results`; `nats` are the losses of all positions, 0 if not scored."""
    nats_N, bytes_N = nats[stream.is_scored], stream.token_bytes[stream.is_scored]
    weights_N = None if stream.weights is None else stream.weights[stream.is_scored]
    if weights_N is not None:
        nats_N, bytes_N = nats_N * weights_N, bytes_N * weights_N
    num_tokens, num_bytes = len(nats_N), round(bytes_N.sum())
    total_nats = float(nats_N.sum())
    notes = list(stream.notes)
    if len(windows) == 1:
        length = len(stream.tokens)
        notes.append(f"The text has {length:,} tokens and fits into one window: its first tokens have little context.")
    if not math.isfinite(total_nats):
        num_bad = int((~np.isfinite(nats_N)).sum())
        notes.append(f"The loss of {num_bad:,} of {num_tokens:,} tokens is not finite, so no results can be given.")
    block_N, description = make_blocks(stream.document[stream.is_scored])
    nats_K = np.bincount(block_N, nats_N)
    sizes_KM = np.column_stack([np.bincount(block_N, weights_N), np.bincount(block_N, bytes_N)])
    loss_error, nats_per_byte_error = ratio_errors(nats_K, sizes_KM).tolist()
    return {
        "data": stream.name,
        "data_fingerprint": stream.fingerprint,
        "segmentation": stream.segmentation,
        "protocol": protocol.name,
        "max_length": protocol.max_length,
        "stride": protocol.stride,
        "loss": _finite(total_nats / num_tokens),
        "perplexity": _exp(total_nats / num_tokens),
        "bits_per_byte": _finite(total_nats / num_bytes / math.log(2)) if num_bytes else None,
        "se_loss": _finite(loss_error),
        "se_bits_per_byte": _finite(nats_per_byte_error / math.log(2)),
        "se_method": f"block bootstrap over {description}",
        "tokens": num_tokens,
        "bytes": num_bytes,
        "words": stream.words,
        "word_perplexity": _exp(total_nats / stream.words) if stream.words else None,
        "windows": len(windows),
        "in_training": stream.in_training,
        "notes": notes,
        "blocks": _stored_blocks(nats_K, sizes_KM) if math.isfinite(total_nats) else None,
    }


def _stored_blocks(nats_K: np.ndarray, sizes_KM: np.ndarray) -> dict[str, list[Any]]:
    """Return sums over blocks, for errors of differences, with seven digits, the precision of float32 losses."""
    sums_MK = merge_blocks(np.column_stack([nats_K, sizes_KM])).T
    nats, num_tokens, num_bytes = [[float(f"{value:.7g}") for value in sums_K] for sums_K in sums_MK]
    return {"nats": nats, "tokens": num_tokens, "bytes": num_bytes}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _exp(loss: float) -> float | None:
    """Return exp(loss); None if a float64 cannot hold it."""
    return math.exp(loss) if loss < 700 else None
