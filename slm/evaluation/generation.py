"""A sample, written as it is drawn: `python evaluate.py checkpoint=RUN prompt="..."`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from slm.checkpoints import Checkpoint
from slm.data import Tokenizer
from slm.model import generate

REPLACEMENT = "\ufffd"
"""What half a character decodes to."""


def stream_sample(checkpoint: Checkpoint, prompt: str, settings: Mapping[str, Any], *, seed: int) -> None:
    """Print `prompt` and its continuation, then the speed on stderr; `settings` is `generation` of conf/evaluate.yaml.

    Raises `ValueError` if the prompt leaves no room in the model's context.
    """
    decoder, tokenizer, _ = checkpoint
    ids = prompt_ids(tokenizer, prompt)
    room = decoder.config.max_position_embeddings
    if len(ids) >= room:
        raise ValueError(f"prompt has {len(ids)} tokens, and the checkpoint has room for {room}: give a shorter one")
    print(prompt, end="", flush=True)
    start, drawn = time.perf_counter(), list[int]()
    sampled = generate(decoder, ids, stop_id=tokenizer.eos_id, num_ids=tokenizer.vocab_size, seed=seed, **settings)
    for piece in text_pieces(tokenizer, ids, _kept(sampled, drawn)):
        print(piece, end="", flush=True)
    seconds = time.perf_counter() - start
    print(flush=True)
    if len(drawn) < settings["max_new_tokens"] and not _is_finite(checkpoint, [*ids, *drawn]):
        raise ValueError(f"checkpoint={checkpoint.provenance.checkpoint} gives logits that are not finite: it diverged")
    ended = (
        "" if len(drawn) == settings["max_new_tokens"] else ", then the model ended the text or its context was full"
    )
    print(f"{len(drawn)} tokens in {seconds:.1f} s, seed {seed}{ended}", file=sys.stderr)


@torch.inference_mode()
def _is_finite(checkpoint: Checkpoint, ids: list[int]) -> bool:
    room = checkpoint.decoder.config.max_position_embeddings
    tokens = torch.tensor([ids[-room:]], device=checkpoint.decoder.head_weight.device)
    return bool(checkpoint.decoder.hidden(tokens)[:, -1].isfinite().all())


def _kept(ids: Iterable[int], kept: list[int]) -> Iterator[int]:
    for token in ids:
        kept.append(token)
        yield token


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt after the token that begins a text: BOS, or EOS where a tokenizer has one token for both."""
    begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    opening = [begin] if tokenizer.adds_bos or not prompt else []
    return [*opening, *tokenizer.encode(prompt)]


def text_pieces(tokenizer: Tokenizer, before: list[int], ids: Iterable[int]) -> Iterator[str]:
    """The text that each id adds, held back while a character is not whole."""
    context = before[-8:]  # a token can decode differently at the start of a text
    held: list[int] = []
    for token in ids:
        held.append(token)
        known = tokenizer.decode(context)
        text = tokenizer.decode([*context, *held])
        if text.endswith(REPLACEMENT):
            continue
        yield text[len(known) :]
        context, held = [*context, *held][-8:], []
    yield tokenizer.decode([*context, *held])[len(tokenizer.decode(context)) :]
