"""Our decoder as a model of lm-evaluation-harness.

Notable: tokens are cut where the harness's own `hf` model cuts them (the base class does it), so that accuracies are
equal. This module imports the harness, so import it only where tasks are run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from slm.data import Tokenizer
from slm.evaluation.tasks.scoring import Request, Scorer, make_request
from slm.model import Decoder
from slm.model.decoding import generate

MAX_NEW_TOKENS = 256
"""Tokens of an answer where the task does not say: the harness's own default."""

Progress = Callable[[str, int, int], None]
"""Called with what is counted, how many are done and how many there are."""


class DecoderLM(TemplateLM):
    """A decoder and its tokenizer behind the harness's interface; no chat template."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int,
        autocast: torch.dtype | None = None,
        seed: int = 0,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        super().__init__()
        self._decoder = decoder
        self._text = tokenizer
        self._scorer = Scorer(decoder, batch_tokens=batch_tokens, autocast=autocast)
        self._device = self._scorer.device
        self._seed = seed
        self._progress = progress
        self.num_truncated = 0
        """Requests that were longer than the model's context and were truncated on the left."""
        self._begin = [self.prefix_token_id] if tokenizer.adds_bos else []

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context becomes: the begin token where there is one, else the end token."""
        return self._text.eos_id if self._text.bos_id is None else self._text.bos_id

    @property
    def max_length(self) -> int:
        """Tokens of the model's context."""
        return self._decoder.config.max_position_embeddings

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, after the begin token where the tokenizer's own rule puts one.

        Text never becomes a special token: "</s>" in a question is four characters.
        """
        ids = self._text.encode(string)
        return ids if add_special_tokens is False else [*self._begin, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # A context of spaces alone is left without tokens (they go to the continuation): treated as an empty one.
        begin = [self.prefix_token_id]
        self.num_truncated += sum(len(context) + len(new) > self.max_length + 1 for _, context, new in requests)
        items = [make_request(context or begin, continuation, self.max_length) for _, context, continuation in requests]
        scores = self._scorer(items, lambda done: self._progress("requests", done, len(items)))
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of each whole text, every token scored once, in windows of the model's context."""
        windows = [self._windows(instance.args[0]) for instance in requests]
        flat = [window for request in windows for window in request]
        scores = iter(self._scorer(flat, lambda done: self._progress("windows", done, len(flat))))
        return [sum(next(scores).log_likelihood for _ in request) for request in windows]

    def _windows(self, text: str) -> list[Request]:
        windows = get_rolling_token_windows(
            self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        pairs = map(make_disjoint_window, windows)
        return [make_request(context, continuation, self.max_length) for context, continuation in pairs]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """A continuation of each context up to its stop strings, the end of text or its number of tokens."""
        answers = []
        for number, instance in enumerate(requests):
            context, settings = instance.args
            answers.append(self._generate(context, dict(settings), self._seed + number))
            self._progress("answers", number + 1, len(requests))
        return answers

    def _generate(self, context: str, settings: dict[str, Any], seed: int) -> str:
        settings = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
        stops = [stop for stop in handle_stop_sequences(settings["until"], eos=None) if stop]
        room = self.max_length - settings["max_gen_toks"]
        if room < 1:
            raise ValueError(
                f"the task asks for answers of {settings['max_gen_toks']} tokens, and the model's context of "
                f"{self.max_length} leaves no room for a question"
            )
        ids: list[int] = []
        text = ""
        with self._scorer.precision():
            for token in generate(
                self._decoder,
                self.tok_encode(context)[-room:],
                max_new_tokens=settings["max_gen_toks"],
                temperature=settings["temperature"] if settings["do_sample"] else 0.0,
                top_k=settings.get("top_k"),
                top_p=settings.get("top_p"),
                stop_id=self.eot_token_id,
                num_ids=self._text.vocab_size,
                seed=seed,
            ):
                ids.append(token)
                text = self._text.decode(ids)
                if any(stop in text for stop in stops):
                    break
        for stop in stops:
            text = text.split(stop)[0]
        return text
