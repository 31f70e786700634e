"""Talk with a checkpoint on standard input and output: `chat=true` of evaluate.py, and `prompt=` for one sample.

A tokenizer with a chat template gets messages of a user and an assistant. Any other checkpoint continues one running
text, to which each line is added. Only the conversation goes to standard output, and no escape codes: the loop also
works line by line in a pipe.
"""

import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

import yaml

from slm.checkpoints import AnyCheckpoint as Checkpoint
from slm.checkpoints import check_any
from slm.evaluation.config import address_of, read_prompt
from slm.evaluation.generation import Options, check_option, keep, new_ids, print_sample, require_room, text_pieces
from slm.evaluation.history import Conversation, RunningText
from slm.evaluation.measure import check_compile, load_checked, resolve_precision
from slm.model import Decoder
from slm.model.decoding import NextLogits, compiled_logits, eager_logits
from slm.model.interface import Cache
from slm.runtime.progress import say

HELP = f"""\
/reset           begin a new conversation
/set NAME=VALUE  change an option: {", ".join(Options.__annotations__)}
/help            show this
/exit            end, as Ctrl-D does
Ctrl-C stops an answer; twice, it ends the program. A line that ends in \\ is continued on the next line."""


def talk(settings: Mapping[str, Any]) -> int:
    """Print a sample of the checkpoint, or answer line by line if `chat` is set; return exit code 0.

    `settings` comes from `check_settings`. Raises `ValueError` if the user made a mistake. This module imports none of
    what measuring needs, so that the first token comes seconds earlier.
    """
    prompt = None if settings["chat"] else read_prompt(settings)  # before the weights, which take longer to read
    address, revision = address_of(settings["checkpoints"][0], settings)
    provenance = check_any(address, revision=revision)
    precision = resolve_precision(settings, provenance, settings["quantize"][0])
    options = {"seed": settings["seed"], **settings["generation"]}
    if is_compiled := options.pop("compile"):
        check_compile("generation.compile", provenance, precision.device)
    model = load_checked(provenance, precision)
    next_logits = compiled_logits(cast("Decoder", model.decoder)) if is_compiled else eager_logits(model.decoder)
    if prompt is None:
        Chat(model, options, next_logits, system=settings["system"], as_text=settings["chat"] == "text").run()
    else:
        print_sample(model, prompt, options, next_logits)
    return 0


class Chat:
    """The loop: reads lines, prints answers as they are generated, and obeys the commands of `HELP`."""

    def __init__(
        self,
        model: Checkpoint,
        options: dict[str, Any],
        next_logits: NextLogits,
        *,
        system: str | None = None,
        as_text: bool = False,
    ) -> None:
        """With `as_text`, a chat template is ignored. Raises `ValueError` if it refuses or lacks a conversation."""
        self.model, self.options, self.next_logits = model, options, next_logits
        self.context = model.decoder.config.max_position_embeddings
        tokenizer = model.tokenizer
        self.history: RunningText | Conversation
        if as_text or tokenizer.chat_template is None:
            if system is not None:
                reason = "chat=text uses none" if as_text else "this checkpoint has none"
                raise ValueError(f"system needs a chat template, and {reason}: put it into your first line")
            self.history = RunningText(tokenizer)
        else:
            self.history = Conversation(tokenizer, system)
            self.history.prompt("a question")
        self.num_answers = 0
        self.has_dropped = False
        self.was_stopped = False
        self.is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.cache: Cache = self._new_cache()
        self.cached_ids: list[int] = []

    def run(self) -> None:
        """Answer line by line until /exit or the end of the input. Ctrl-C twice in a row raises KeyboardInterrupt."""
        has_template = isinstance(self.history, Conversation)
        how = "its chat template" if has_template else "without a chat template: it continues the text"
        say(f"{self.model.provenance.checkpoint}: context of {self.context:,} tokens, {how}. /help lists the commands.")
        if self.is_interactive:
            with suppress(ImportError):  # Windows has no readline
                import readline  # noqa: F401  (`input` then edits lines and recalls earlier ones)
        if not sys.stdin.isatty():
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        while (line := self._read()) is not None:
            name = line.strip()
            if name == "/exit":
                return
            if name == "/help":
                say(HELP)
            elif name == "/reset":
                self.history.turns.clear()
                self.num_answers = 0
            elif name.startswith("/set ") or name == "/set":
                self._set(name.removeprefix("/set").strip())
            elif line.startswith("/"):
                say(f"{name.split()[0]} is not a command: /help lists them; with a space before it, it is sent as text")
            elif line or not has_template:
                self._answer(line)

    def _read(self) -> str | None:
        """Return the next line, joined with those that continue it; None at the end of the input."""
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            try:
                lines.append(self._read_line("... " if lines else "> "))
            except EOFError:
                if self.is_interactive:
                    print(flush=True)
                if not lines:
                    return None
                break
            except KeyboardInterrupt:
                if self.was_stopped or not self.is_interactive:
                    raise
                print(flush=True)
                say("Ctrl-C again ends the program")
                self.was_stopped, lines = True, []
        self.was_stopped = False
        return "\n".join([line.removesuffix("\\") for line in lines[:-1]] + lines[-1:])

    def _read_line(self, prompt: str) -> str:
        line = input(prompt) if self.is_interactive else sys.stdin.readline()
        if not line and not self.is_interactive:
            raise EOFError
        return line.rstrip("\r\n")

    def _set(self, assignment: str) -> None:
        name, _, value = assignment.partition("=")
        try:
            parsed = yaml.safe_load(value)
            check_option(name.strip(), parsed)
        except (ValueError, yaml.YAMLError) as error:
            say(f"error: {str(error).splitlines()[0]}")
        else:
            self.options[name.strip()] = parsed

    def _answer(self, line: str) -> None:
        """Print the answer to a line, and add both to the history."""
        try:
            ids = self._fitting_prompt(line)
        except ValueError as error:
            say(f"error: {error}")
            return
        options = self.options | {"seed": (self.options["seed"] + self.num_answers) % 2**32}
        answer: list[int] = []
        cache = self._cache_for(ids)
        tokens = new_ids(
            self.model, ids, options, stop_id=self.history.stop_ids, next_logits=self.next_logits, cache=cache
        )
        with self._ctrl_c_stops(tokens) as stoppable_tokens:
            for piece in text_pieces(self.model.tokenizer, ids, keep(stoppable_tokens, answer)):
                print(piece, end="", flush=True)
        print(flush=True)
        self.cached_ids = [*ids, *answer][: cache.length]
        is_full = len(ids) + len(answer) >= self.context
        if is_full:
            say(f"the context of {self.context:,} tokens is full, which ended the answer")
        ended = not self.was_stopped and not is_full and len(answer) < options["max_new_tokens"]
        self.history.add(line, answer, ended=ended)
        self.num_answers += 1

    def _fitting_prompt(self, line: str) -> list[int]:
        """Return the ids of the prompt, after dropping oldest turns until an answer fits behind it.

        Raises `ValueError` if the line alone fills the context.
        """
        require_room(self.model, line)
        room = min(self.options["max_new_tokens"], self.context // 2)
        while len(ids := self.history.prompt(line)) + room > self.context and self.history.turns:
            del self.history.turns[0]
            if not self.has_dropped:
                say(f"the context of {self.context:,} tokens is full: from now on, the oldest turns are dropped")
            self.has_dropped = True
        require_room(self.model, line, ids)
        return ids

    def _cache_for(self, ids: list[int]) -> Cache:
        """Return the cache of the last answer if all its tokens begin `ids`, else an empty one."""
        num_cached = self.cache.length
        is_prefix = num_cached == len(self.cached_ids) < len(ids) and ids[:num_cached] == self.cached_ids
        if not is_prefix:
            self.cache = self._new_cache()
        self.cached_ids = []  # until the answer is complete, because an error may leave the cache in any state
        return self.cache

    def _new_cache(self) -> Cache:
        cache: Cache = self.model.decoder.make_cache(1, self.context)
        return cache

    @contextmanager
    def _ctrl_c_stops(self, tokens: Iterator[int]) -> Iterator[Iterator[int]]:
        """Yield the tokens up to the one during which Ctrl-C is pressed. A second Ctrl-C raises KeyboardInterrupt.

        A token is completed, so that the cache has it in all blocks.
        """

        def stop(*_: object) -> None:
            if self.was_stopped:
                raise KeyboardInterrupt
            self.was_stopped = True

        def stoppable() -> Iterator[int]:
            for token in tokens:
                yield token
                if self.was_stopped:
                    return

        previous = signal.signal(signal.SIGINT, stop)
        try:
            yield stoppable()
        finally:
            signal.signal(signal.SIGINT, previous)
