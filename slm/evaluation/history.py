"""What was said in a chat so far, as `turns`, oldest first: one running text, or the messages of a conversation."""

from slm.data.conversations import encode_prompt, end_of_turn_ids
from slm.data.tokenizer import Tokenizer


class RunningText:
    """One text, to which the user's lines and the model's continuations are added, each after a line break.

    After an end of text, the next line begins a new document.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = [tokenizer.eos_id]
        self.turns: list[list[int]] = []

    def prompt(self, line: str) -> list[int]:
        """Return the ids of the text so far and a line. An empty line adds nothing."""
        return [*self._start(), *(token for turn in self.turns for token in turn), *self._added(line)]

    def _start(self) -> list[int]:
        return [self.tokenizer.separator_id] if self.tokenizer.adds_bos else []

    def _added(self, line: str) -> list[int]:
        if not self.turns:
            return self.tokenizer.encode(line) or ([] if self._start() else [self.tokenizer.separator_id])
        if self.turns[-1][-1:] == [self.tokenizer.eos_id]:
            begin = [self.tokenizer.separator_id] if self.tokenizer.has_own_bos else []
            return [*begin, *self.tokenizer.encode(line)]
        return self.tokenizer.encode(f"\n{line}") if line else []

    def add(self, line: str, answer: list[int], *, ended: bool) -> None:
        """Add a line and the ids with which the model continued it; `ended` says whether it ended the text."""
        self.turns.append([*self._added(line), *answer, *([self.tokenizer.eos_id] if ended else [])])


class Conversation:
    """Messages of a user and an assistant, in the form of the tokenizer's chat template."""

    def __init__(self, tokenizer: Tokenizer, system: str | None) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = end_of_turn_ids(tokenizer)
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[list[dict[str, str]]] = []

    def prompt(self, line: str) -> list[int]:
        """Return the ids of the conversation so far and a message of the user, up to where the answer begins."""
        messages = [message for turn in self.turns for message in turn]
        return encode_prompt([*self.system, *messages, {"role": "user", "content": line}], self.tokenizer)

    def add(self, line: str, answer: list[int], *, ended: bool) -> None:
        """Add a message of the user and the ids of its answer."""
        said = {"role": "assistant", "content": self.tokenizer.decode(answer)}
        self.turns.append([{"role": "user", "content": line}, said])
