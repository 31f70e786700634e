"""Texts that a checkpoint generates, piece by piece: `generate` and `stream` of `slm`, and `prompt=` of evaluate.py."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import tee
from typing import Any, TypedDict, Unpack

import torch

from slm.checkpoints import Checkpoint
from slm.data.tokenizer import Tokenizer
from slm.evaluation.config import KINDS
from slm.model import decoding
from slm.runtime.progress import say
from slm.runtime.settings import check_kind

REPLACEMENT = "\ufffd"  # decoding the first bytes of a character without the rest gives this character
MAX_NEW_TOKENS = 128


class Options(TypedDict, total=False):
    """How a text is sampled; `slm.model.decoding.generate` has the meanings and defaults."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int


def generate(model: Checkpoint, prompt: str, **options: Unpack[Options]) -> str:
    """Return the text with which a checkpoint continues `prompt`.

    `model` comes from `slm.load`. Options: `max_new_tokens` (128), `temperature` (0.8; 0 takes the most likely token),
    `top_k` (50), `top_p`, `min_p`, `repetition_penalty` (1) and `seed` (0). The text ends early where the model ends it
    or its context is full. Raises `ValueError` for an option out of range, a prompt longer than the context, and a
    model that diverged.
    """
    return "".join(stream(model, prompt, **options))


def stream(model: Checkpoint, prompt: str, **options: Unpack[Options]) -> Iterator[str]:
    """Return `generate` as an iterator over pieces of the text, each available once the model has generated it."""
    for name, value in options.items():
        check_kind(name, value, KINDS["seed" if name == "seed" else f"generation.{name}"])
    ids = prompt_ids(model.tokenizer, prompt)
    require_room(model, len(ids))
    return text_pieces(model.tokenizer, ids, new_ids(model, ids, options))


def require_room(model: Checkpoint, num_ids: int) -> None:
    """Raise `ValueError` if no token fits into the context after `num_ids` tokens."""
    context = model.decoder.config.max_position_embeddings
    if num_ids >= context:
        raise ValueError(f"prompt has {num_ids} tokens, but the checkpoint's context is {context}: shorten it")


def new_ids(model: Checkpoint, ids: list[int], options: Mapping[str, Any], **more: Any) -> Iterator[int]:
    """Yield the ids that follow `ids`, until the end of text. Raises `ValueError` if the logits are not finite.

    `options` are `Options`, and `more` other arguments of `slm.model.decoding.generate`.
    """
    decoder, tokenizer, provenance = model
    defaults = {"max_new_tokens": MAX_NEW_TOKENS, "stop_id": tokenizer.eos_id, "num_ids": tokenizer.vocab_size}
    arguments = {**defaults, **options, **more}
    generated: list[int] = []
    for token in decoding.generate(decoder, ids, **arguments):
        generated.append(token)
        yield token
    if len(generated) < arguments["max_new_tokens"]:
        context = decoder.config.max_position_embeddings
        tokens_1T = torch.tensor([[*ids, *generated][-context:]], device=decoder.head_weight.device)
        with torch.inference_mode():
            if not decoder.hidden(tokens_1T)[:, -1].isfinite().all():
                raise ValueError(f"checkpoint={provenance.checkpoint} gives logits that are not finite: it diverged")
