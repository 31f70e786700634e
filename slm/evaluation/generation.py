"""Texts that a checkpoint generates, piece by piece: `generate` and `stream` of `slm`, and `prompt=` of evaluate.py."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from torch import Tensor

from slm.checkpoints import AnyCheckpoint as Checkpoint
from slm.data.conversations import encode_prompt, end_of_turn_ids
from slm.data.tokenizer import Tokenizer
from slm.evaluation.config import KINDS
from slm.model import decoding
from slm.model.decoding import NextLogits, eager_logits
from slm.model.interface import Cache
from slm.runtime.progress import say
from slm.runtime.settings import check_kind

REPLACEMENT = "\ufffd"  # decoding the first bytes of a character without the rest gives this character

Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` (system, user, assistant or tool) and `content`."""


class Options(TypedDict, total=False):
    """How a text is sampled; `slm.model.decoding.generate` has the meanings and the defaults."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int


def generate(model: Checkpoint, prompt: str | Messages, **options: Unpack[Options]) -> str:
    """Return the text with which a checkpoint continues a text, or answers a conversation.

    `model` comes from `slm.load`. `prompt` is a text, or messages such as `[{"role": "user", "content": "Hello"}]`,
    which need a tokenizer with a chat template. Options: `max_new_tokens` (128), `temperature` (0.8; 0 takes the most
    likely token), `top_k` (50), `top_p`, `min_p`, `repetition_penalty` (1) and `seed` (0). The text ends early where
    the model ends it, or its context. Raises `ValueError` for an option out of range, a prompt that fills the context,
    messages without a chat template, and a model that diverged.
    """
    return "".join(stream(model, prompt, **options))


def stream(model: Checkpoint, prompt: str | Messages, **options: Unpack[Options]) -> Iterator[str]:
    """Return what `generate` returns as an iterator over its pieces, each of which comes as soon as it is generated."""
    for name, value in options.items():
        check_option(name, value)
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        require_room(model, prompt)
        ids, stop_ids = prompt_ids(tokenizer, prompt), [tokenizer.eos_id]
    elif tokenizer.chat_template is None:
        raise ValueError("messages need a chat template, and this checkpoint has none: give a text")
    else:
        ids, stop_ids = encode_prompt(prompt, tokenizer), end_of_turn_ids(tokenizer)
    require_room(model, "", ids)
    return text_pieces(tokenizer, ids, new_ids(model, ids, options, stop_id=stop_ids))


def check_option(name: str, value: Any) -> None:
    """Raise `ValueError` for an option of sampling that does not exist, or for a value of a wrong kind."""
    if name not in Options.__annotations__:
        raise ValueError(f"{name} is not an option of generation: they are {', '.join(Options.__annotations__)}")
    check_kind(name, value, KINDS[name if name == "seed" else f"generation.{name}"])


def require_room(model: Checkpoint, text: str, ids: Sequence[int] = ()) -> None:
    """Raise `ValueError` if the context has no room for a token after a text, or after its `ids`.

    Without `ids`, it refuses only a text that is too long for any tokens, before megabytes of it are encoded.
    """
    context = model.decoder.config.max_position_embeddings
    too_long = f"is too long for the checkpoint's context of {context:,} tokens: shorten it"
    if len(text) > context * int(model.tokenizer.token_bytes.max()):
        raise ValueError(f"a text of {len(text):,} characters {too_long}")
    if len(ids) >= context:
        raise ValueError(f"a text of {len(ids):,} tokens {too_long}")


def new_ids(
    model: Checkpoint,
    ids: list[int],
    options: Mapping[str, Any],
    *,
    stop_id: int | Sequence[int],
    next_logits: NextLogits | None = None,
    cache: Cache | None = None,
) -> Iterator[int]:
    """Yield the ids that follow `ids`, with the `Options`. Raises `ValueError` if the logits are not finite."""
    decoder, tokenizer, provenance = model
    unchecked = next_logits or eager_logits(decoder)

    def checked(tokens_1T: Tensor, cache: Any) -> Tensor:
        logits_V = unchecked(tokens_1T, cache)
        if not logits_V.isfinite().all():
            raise ValueError(f"checkpoint={provenance.checkpoint} gives logits that are not finite: it diverged")
        return logits_V

    more: dict[str, Any] = {"next_logits": checked, "cache": cache, "stop_id": stop_id}
    return decoding.generate(decoder, ids, num_ids=tokenizer.vocab_size, **more, **options)


def print_sample(model: Checkpoint, prompt: str, options: Mapping[str, Any], next_logits: NextLogits) -> None:
    """Print the prompt and its continuation token by token, then the speed on stderr."""
    require_room(model, prompt)
    ids = prompt_ids(model.tokenizer, prompt)
    require_room(model, prompt, ids)
    print(prompt, end="", flush=True)
    start = time.perf_counter()
    generated: list[int] = []
    tokens = new_ids(model, ids, options, stop_id=model.tokenizer.eos_id, next_logits=next_logits)
    for piece in text_pieces(model.tokenizer, ids, keep(tokens, generated)):
        print(piece, end="", flush=True)
    print(flush=True)
    seconds = time.perf_counter() - start
    is_short = len(generated) < options["max_new_tokens"]
    ending = ", then the model ended the text or its context was full" if is_short else ""
    say(f"{len(generated)} tokens in {seconds:.1f} s, seed {options['seed']}{ending}")


def keep(tokens: Iterable[int], kept: list[int]) -> Iterator[int]:
    """Yield the tokens, and append each to `kept`."""
    for token in tokens:
        kept.append(token)
        yield token


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt. BOS (else EOS) comes first if the tokenizer adds it or the prompt is empty."""
    ids = tokenizer.encode(prompt)
    if tokenizer.adds_bos or not prompt:
        return [tokenizer.separator_id, *ids]
    return ids


def text_pieces(tokenizer: Tokenizer, ids: list[int], new_ids: Iterable[int]) -> Iterator[str]:
    """Yield the text that each of `new_ids` adds to `ids`. A character is held back until it is complete."""
    context = ids[-8:]  # some tokens, because a token can decode differently at the start of a text
    pending: list[int] = []  # tokens whose text has not been yielded
    for token in new_ids:
        pending.append(token)
        text = tokenizer.decode([*context, *pending])
        if not text.endswith(REPLACEMENT):
            yield text[len(tokenizer.decode(context)) :]
            context = [*context, *pending][-8:]
            pending = []
    yield tokenizer.decode([*context, *pending])[len(tokenizer.decode(context)) :]
