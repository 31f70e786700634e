"""Conversations as training data: rows of files become messages, and messages become tokens with marks.

A document of such a corpus is the JSON text of a conversation, so that it does not depend on a tokenizer. Only what the
assistant says is scored: what the template puts into `{% generation %}` blocks, or, in a template without such blocks,
what an assistant's message adds to the prompt for it, up to the token that ends the message.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slm.data.chat_template import END, PLAIN_TEMPLATE, START, render

if TYPE_CHECKING:
    from slm.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
FORMS = "messages (a list of {role, content}), or prompt and completion"
SCORED, BEGINS = 1, 2
"""Bits of a token's mark: its prediction counts, and it is the first of a conversation."""
_BREAK = "\ufdd2"  # put into a special token that a message contains as text; not a character, like START and END
_QUOTED = 120  # characters of a conversation in a message
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Render = partial[str]
"""`render` with a template, its tokenizer's special tokens, and the tools of a conversation."""


class Encoded(NamedTuple):
    """The tokens of a conversation."""

    ids: list[int]
    marks: np.ndarray
    """uint8, one for each token: `SCORED` and `BEGINS`."""
    token_bytes: np.ndarray
    """int64: the UTF-8 bytes of the text that each token stands for; 0 for special tokens."""
    keeps_text: bool
    """Whether the text can be decoded from the ids."""


def template_of(data: Mapping[str, Any], own: str | None) -> str:
    """Return the template of a data config: `data.template`, else the tokenizer's `own`, else the plain one."""
    if data.get("template") is None:
        return PLAIN_TEMPLATE if own is None else own
    path = Path(data["template"]).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.template={data['template']!r} cannot be read ({type(error).__name__}): give a Jinja file"
        ) from None


def conversation(row: Any, place: str) -> str:
    """Return the JSON text of a row of a file: `messages` and, if given, `tools`.

    A row with `prompt` and `completion` is one question of a user and the assistant's answer. Raises ValueError that
    begins with `place` if the row is not a conversation in which an assistant says something.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{place} is not an object with {FORMS}")
    given = row.get("messages")
    if given is None and row.get("prompt") is not None and row.get("completion") is not None:
        given = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    if not isinstance(given, list) or not given:
        raise ValueError(f"{place} must have {FORMS}; it has {', '.join(map(str, row)) or 'no keys'}")
    messages = [_message(message, f"{place}: message {number}") for number, message in enumerate(given, 1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError(f"{place} has no message of the assistant, so it has nothing to learn: leave it out")
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    text = json.dumps({"messages": messages, **tools}, ensure_ascii=False)
    text = text.encode(errors="replace").decode()  # JSON may hold half a surrogate pair
    if any(character in text for character in (START, END, _BREAK)):
        raise ValueError(f"{place} contains one of U+FDD0 to U+FDD2, which are not characters of text: remove it")
    return text


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise ValueError(f"{place} must have a role, one of {', '.join(ROLES)}, not {role!r}")
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and not calls:
        raise ValueError(f"{place} ({message['role']}) has neither content nor tool_calls")
    if not isinstance(content, str | None):
        raise ValueError(f"{place}: content must be text, not {type(content).__name__}")
    known = {key: value for key, value in message.items() if value is not None}  # Parquet has null for absent keys
    known["content"] = content or ""
    if calls:
        if message["role"] != "assistant" or not isinstance(calls, list):
            raise ValueError(f"{place}: tool_calls must be a list in a message of the assistant")
        known["tool_calls"] = [_tool_call(call, place) for call in calls]
    return known


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place}: a tool call must be {{name, arguments}}, or {{function: {{name, arguments}}}}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):  # OpenAI's form; templates expect an object
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise ValueError(f"{place}: the arguments of {function['name']} are not JSON") from None
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def rendered(document: str, template: str) -> str:
    """Return the text of a conversation that `conversation` returned, without special tokens."""
    content = json.loads(document)
    return render(content["messages"], template, tools=content.get("tools"))


def _chat(tokenizer: "Tokenizer", template: str | None = None, tools: Any = None) -> Render:
    """Return `render` for a tokenizer, by default with its own template."""
    template = template or tokenizer.chat_template or PLAIN_TEMPLATE
    return partial(render, template=template, tools=tools, **tokenizer.special_tokens)


def encode_prompt(messages: Sequence[Mapping[str, Any]], tokenizer: "Tokenizer") -> list[int]:
    """Return the ids of `messages` and of what stands before the assistant's answer, which is to be generated."""
    return tokenizer.encode_rendered(_chat(tokenizer)(messages, add_generation_prompt=True))[0]


def end_of_turn_ids(tokenizer: "Tokenizer") -> list[int]:
    """Return the ids that end an answer: EOS, and the special token that the chat template writes after an answer."""
    answer = "an answer"
    text = _chat(tokenizer)([{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}])
    _, found, rest = text.rpartition(answer)
    next_id = tokenizer.encode_rendered(rest)[0][:1] if found else []
    return [tokenizer.eos_id, *(token for token in next_id if tokenizer.token_bytes[token] == 0)]


def prompt_and_answer(document: str, tokenizer: "Tokenizer") -> tuple[str, str]:
    """Return the text before the last message of a conversation, the assistant's, and its text without special tokens.

    Raises ValueError if the template cannot render the conversation, or does not write the message as an answer.
    """
    content = json.loads(document)
    chat = _chat(tokenizer, tools=content.get("tools"))
    prompt, text = chat(content["messages"][:-1], add_generation_prompt=True), chat(content["messages"])
    if not text.startswith(prompt):
        raise ValueError("the chat template does not write an answer as an addition to the prompt for it")
    return prompt, tokenizer.decode(tokenizer.encode_rendered(text[len(prompt) :])[0]).strip()


def encode_conversation(document: str, tokenizer: "Tokenizer", template: str) -> Encoded:
    """Return the tokens of a conversation that `conversation` returned, as `apply_chat_template` would.

    A token that would extend from a prompt into an answer is cut between the two, as when an answer is generated.
    Special tokens in messages are encoded as text. Raises ValueError if the template cannot render the conversation,
    or if it does not say what is scored.
    """
    content = json.loads(document)
    messages = content["messages"]
    if specials := [token for token in tokenizer.special_texts.values() if token in document]:
        messages = _broken(messages, specials)
    try:
        text, spans = _spans(messages, _chat(tokenizer, template, content.get("tools")))
    except ValueError as error:
        raise ValueError(f"{error} (the conversation is {document[:_QUOTED]}...)") from None
    breaks = [match.start() for match in re.finditer(_BREAK, text)]
    text = text.replace(_BREAK, "")
    spans = [(start - bisect_left(breaks, start), stop - bisect_left(breaks, stop)) for start, stop in spans]
    cuts = [position - number for number, position in enumerate(breaks)]
    ids, starts = _encode(tokenizer, text, cuts)
    if inside := {start for start, _ in spans} - {0, *starts}:
        ids, starts = _encode(tokenizer, text, [*cuts, *inside])
    starts_n = np.asarray(starts)
    is_scored = np.zeros(len(ids), dtype=bool)
    for start, stop in spans:
        is_scored |= (start <= starts_n) & (starts_n < stop)
    is_scored[:1] = False  # it has no predecessor
    marks = np.where(is_scored, SCORED, 0).astype(np.uint8)
    marks[:1] |= BEGINS
    pieces = zip(ids, pairwise([*starts, len(text)]), strict=True)
    sizes = [
        0 if token in tokenizer.special_texts else len(text[start:stop].encode()) for token, (start, stop) in pieces
    ]
    return Encoded(ids, marks, np.asarray(sizes, dtype=np.int64), tokenizer.keeps_rendered(text, ids))


def _encode(tokenizer: "Tokenizer", text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    starts: list[int] = []
    for begin, end in pairwise([0, *sorted(cuts), len(text)]):
        piece_ids, piece_starts = tokenizer.encode_rendered(text[begin:end])
        ids += piece_ids
        starts += [begin + start for start in piece_starts]
    return ids, starts


def _broken(value: Any, specials: Sequence[str]) -> Any:
    """Return messages with `_BREAK` after the first character of each special token in them."""
    if isinstance(value, str):
        for token in specials:
            value = value.replace(token, token[0] + _BREAK + token[1:])
        return value
    if isinstance(value, dict):
        return {key: _broken(item, specials) for key, item in value.items()}
    return [_broken(item, specials) for item in value] if isinstance(value, list) else value


def _spans(messages: Sequence[Mapping[str, Any]], chat: Render) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation and the parts of it that are scored, as ranges of characters."""
    if _GENERATION_TAG.search(chat.keywords["template"]):
        pieces = re.split(f"[{START}{END}]", chat(messages, mark_generation=True))
        bounds = [0, *accumulate(map(len, pieces))]
        return "".join(pieces), [(bounds[i], bounds[i + 1]) for i in range(1, len(pieces), 2)]
    text = chat(messages)
    numbers = (number for number, message in enumerate(messages) if message["role"] == "assistant")
    return text, [_added_by(number, messages, chat, text) for number in numbers]


def _added_by(number: int, messages: Sequence[Mapping[str, Any]], chat: Render, text: str) -> tuple[int, int]:
    """Return the range of `text` that a message of the assistant adds to the prompt for it."""
    before = chat(messages[:number], add_generation_prompt=True) if number else ""
    up_to = chat(messages[: number + 1])
    if not (text.startswith(up_to) and up_to.startswith(before)):
        raise ValueError(
            f"the chat template does not write message {number + 1} as an addition to the messages before it, so it "
            "does not show what the assistant said: put {% generation %} and {% endgeneration %} around that in a copy "
            "of the template, and give it as data.template=FILE"
        )
    said = up_to[len(before) :]
    if said.rstrip().endswith(chat.keywords["eos_token"]):  # the white space after it is not generated
        said = said.rstrip()
    return len(before), len(before) + len(said)
