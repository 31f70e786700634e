"""Adapt our decoder to the model interface of lm-evaluation-harness.

Notable: the base class splits texts into tokens as for the harness's own `hf` model, so that accuracies are equal.
"""

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from slm.data.conversations import end_of_turn_ids
from slm.data.questions import Request, encode_pair, make_request
from slm.data.tokenizer import Tokenizer
from slm.evaluation.tasks.scoring import Scorer
from slm.model.decoding import generate
from slm.model.interface import CausalLM

MAX_NEW_TOKENS = 256  # maximum length of an answer if the task gives none; the harness's own default

Progress = Callable[[str, int, int], None]  # called with the unit that is counted, the number done and the total


class DecoderLM(TemplateLM):
    """The harness's interface to a decoder and its tokenizer, without a chat template."""

    def __init__(
        self,
        decoder: CausalLM,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int,
        autocast: torch.dtype | None = None,
        seed: int = 0,
        progress: Progress = lambda unit, done, total: None,
    ) -> None:
        super().__init__()
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._scorer = Scorer(decoder, batch_tokens=batch_tokens, autocast=autocast)
        self._device = self._scorer.device
        self._seed = seed
        self._progress = progress
        self.num_truncated = 0  # number of requests cut on the left because they are longer than the model's context
        self._begin_ids = [self.prefix_token_id] if tokenizer.adds_bos else []

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that replaces an empty context: BOS, or EOS if there is no BOS."""
        return self._tokenizer.separator_id

    @property
    def max_length(self) -> int:
        """Number of tokens in the model's context."""
        return self._decoder.config.max_position_embeddings

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text, after BOS if the tokenizer adds it. "</s>" in a text is not a special token."""
        ids = self._tokenizer.encode(string)
        return ids if add_special_tokens is False else [*self._begin_ids, *ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return encode_pair(self.tok_encode, context, continuation)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # The harness moves the spaces at the end of a context to the continuation, which may leave the context empty.
        scorer_requests = []
        for _, context, continuation in requests:
            if len(context) + len(continuation) > self.max_length + 1:
                self.num_truncated += 1
            scorer_requests.append(make_request(context or [self.prefix_token_id], continuation, self.max_length))
        scores = self._scorer(scorer_requests, lambda done: self._progress("requests", done, len(scorer_requests)))
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood (nats) of each text, scored in windows as long as the model's context."""
        windows_by_text = [self._windows(instance.args[0]) for instance in requests]
        windows = [window for text_windows in windows_by_text for window in text_windows]
        scores = iter(self._scorer(windows, lambda done: self._progress("windows", done, len(windows))))
        return [sum(next(scores).log_likelihood for _ in text_windows) for text_windows in windows_by_text]

    def _windows(self, text: str) -> list[Request]:
        windows = get_rolling_token_windows(
            self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        pairs = map(make_disjoint_window, windows)
        return [make_request(context, continuation, self.max_length) for context, continuation in pairs]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate after each context, up to a stop string, the end of text or the maximum number of tokens."""
        answers: list[str] = []
        for instance in requests:
            context, settings = instance.args
            answers.append(self._generate(context, dict(settings), self._seed + len(answers)))
            self._progress("answers", len(answers), len(requests))
        return answers

    def _generate(self, context: str, settings: dict[str, Any], seed: int) -> str:
        is_chat = settings.pop("is_chat", False)  # the context is a rendered conversation: `slm.data.chat_template`
        settings = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
        stop_strings = [stop for stop in handle_stop_sequences(settings["until"], eos=None) if stop]
        max_context_tokens = self.max_length - settings["max_gen_toks"]
        if max_context_tokens < 1:
            raise ValueError(
                f"the task asks for answers of {settings['max_gen_toks']} tokens: the model's context of "
                f"{self.max_length} tokens leaves no room for a question"
            )
        context_ids = self._tokenizer.encode_rendered(context)[0] if is_chat else self.tok_encode(context)
        if len(context_ids) > max_context_tokens:
            self.num_truncated += 1
        ids: list[int] = []
        text = ""
        with self._scorer.precision():
            for token in generate(
                self._decoder,
                context_ids[-max_context_tokens:],
                max_new_tokens=settings["max_gen_toks"],
                temperature=settings["temperature"] if settings["do_sample"] else 0.0,
                top_k=settings.get("top_k"),
                top_p=settings.get("top_p"),
                stop_id=end_of_turn_ids(self._tokenizer) if is_chat else self.eot_token_id,
                num_ids=self._tokenizer.vocab_size,
                seed=seed,
            ):
                ids.append(token)
                text = self._tokenizer.decode(ids)
                if any(stop in text for stop in stop_strings):
                    break
        for stop in stop_strings:
            text = text.split(stop)[0]
        return text
