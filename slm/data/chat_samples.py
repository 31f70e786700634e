"""Two small sets of conversations to try fine-tuning with, made without a download.

`python -m slm.data.chat_samples FOLDER` writes them:
- `questions`: what a function or class of Python's standard library does, and the first sentence of its docstring.
- `calls`: a request, such as "Set a timer for 10 minutes.", and the call of a function that answers it.

Each is a folder with train.jsonl and val.jsonl. The same versions of Python and tzdata give the same files. No call of
val.jsonl is in train.jsonl, but the functions, the ways to ask and most single arguments are.
"""

import calendar
import hashlib
import json
import random
import re
import sys
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from slm.data.docstrings import module_parts_of
from slm.runtime.command_line import one_sentence
from slm.runtime.files import write_atomically

NUM_CALLS = 6000
VAL_SHARE = {"questions": 0.05, "calls": 0.035}
_SENTENCE = re.compile(r"(.+?[.!?])(?=\s|$)", re.DOTALL)
_MAX_ANSWER = 200  # characters
_UNITS = (
    ("metres", "feet"), ("kilometres", "miles"), ("kilograms", "pounds"), ("litres", "gallons"), ("hours", "days"),
)  # fmt: skip
_MINUTES = range(1, 181)
_FIRST_NAMES = ("Ada", "Alan", "Barbara", "Claude", "Donald", "Edsger", "Frances", "Grace", "Ken", "Margaret", "Radia")
_SUBJECTS = ("dentist", "lunch", "standup", "review", "piano lesson", "team call", "haircut", "yoga", "seminar")
_LANGUAGES = ("French", "German", "Hindi", "Italian", "Japanese", "Korean", "Polish", "Spanish", "Swahili", "Turkish")
_PHRASES = ("good morning", "thank you", "where is the station", "see you soon", "how much is it", "well done")
REQUESTS = {
    "set_timer": "Set a timer for {minutes} minutes.|Wake me in {minutes} minutes.|{minutes} minutes on the timer",
    "set_alarm": "Set an alarm for {time} on {day}.|Wake me up at {time} on {day}.|alarm, {day}, {time}",
    "convert": "What is {value} {from} in {to}?|Convert {value} {from} to {to}.|{value} {from} in {to}, please",
    "get_weather": "What is the weather in {city} on {day}?|{city} on {day}: will it rain?|weather {city} {day}",
    "add_event": "Add {title} on {day} at {time}.|I have {title} at {time} on {day}.|calendar: {day} {time} {title}",
    "call": "Call {name} in {minutes} minutes.|Ring {name}, but wait {minutes} minutes.|phone {name} {minutes}m",
    "translate": "How do I say {text} in {language}?|Translate {text} to {language}.|{text} in {language}?",
    "time_in": "What time is it in {city}?|Tell me the time in {city}.|{city} time",
}
"""Function -> the ways to ask for it, with its arguments in braces."""


def calls(num_calls: int = NUM_CALLS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a call as text, and the conversation that asks for it; no conversation twice."""
    draw, functions = random.Random(1), _functions()
    requests = set[str]()
    while len(requests) < num_calls:
        name, draw_arguments = draw.choice(functions)
        arguments = draw_arguments(draw)
        request = draw.choice(REQUESTS[name].split("|")).format(**arguments)
        if request in requests:
            continue
        requests.add(request)
        call = {"name": name, "arguments": arguments}
        answer = {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
        yield json.dumps(call), {"messages": [{"role": "user", "content": request}, answer]}


def _functions() -> list[tuple[str, Callable[[random.Random], dict[str, Any]]]]:
    """Return the functions of `REQUESTS`, each with a way to draw its arguments."""
    cities = sorted({name.split("/")[-1].replace("_", " ") for name in zoneinfo.available_timezones() if "/" in name})
    cities = [city for city in cities if city.replace(" ", "").isalpha()]
    days = list(calendar.day_name)

    def clock(draw: random.Random) -> str:
        return f"{draw.randrange(24):02}:{draw.choice((0, 15, 30, 45)):02}"

    def conversion(draw: random.Random) -> dict[str, Any]:
        source, target = draw.choice(_UNITS)[:: draw.choice((1, -1))]
        return {"value": draw.randint(1, 999), "from": source, "to": target}

    return [
        ("set_timer", lambda draw: {"minutes": draw.choice(_MINUTES)}),
        ("set_alarm", lambda draw: {"day": draw.choice(days), "time": clock(draw)}),
        ("convert", conversion),
        ("get_weather", lambda draw: {"city": draw.choice(cities), "day": draw.choice(days)}),
        ("add_event", lambda draw: {"title": draw.choice(_SUBJECTS), "day": draw.choice(days), "time": clock(draw)}),
        ("call", lambda draw: {"name": draw.choice(_FIRST_NAMES), "minutes": draw.choice(_MINUTES)}),
        ("translate", lambda draw: {"text": draw.choice(_PHRASES), "language": draw.choice(_LANGUAGES)}),
        ("time_in", lambda draw: {"city": draw.choice(cities)}),
    ]


def questions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name of the standard library, and what it does by the first sentence of its docstring."""
    for module, parts in module_parts_of(()):
        for heading, text in parts:
            name = heading.removeprefix("class ").split("(")[0]
            sentence = _SENTENCE.match(" ".join(text.split("\n\n")[0].split()))
            if name and sentence and len(sentence[1]) <= _MAX_ANSWER and not name.rpartition(".")[2].startswith("_"):
                question = f"What {'is' if heading.startswith('class ') else 'does'} {module}.{name}"
                question += "?" if heading.startswith("class ") else " do?"
                yield f"{module}.{name}", {"prompt": question, "completion": sentence[1]}


def write_set(folder: Path, rows: Iterable[tuple[str, dict[str, Any]]], val_share: float) -> dict[str, int]:
    """Write train.jsonl and val.jsonl into `folder`; the hash of a row's name decides. Returns their sizes."""
    folder.mkdir(parents=True, exist_ok=True)  # first, because making the rows takes seconds
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for name, row in rows:
        is_val = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / (1 << 48) < val_share
        lines["val" if is_val else "train"].append(json.dumps(row, ensure_ascii=False) + "\n")
    for split, split_lines in lines.items():
        write_atomically(folder / f"{split}.jsonl", "".join(split_lines))
    return {split: len(split_lines) for split, split_lines in lines.items()}


def main(arguments: list[str]) -> int:
    """Write both sets into the folder that `arguments` names."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("give one folder: python -m slm.data.chat_samples FOLDER", file=sys.stderr)
        return 1
    try:
        for name, rows in (("questions", questions()), ("calls", calls())):
            folder = Path(arguments[0]) / name
            counts = write_set(folder, rows, VAL_SHARE[name])
            print(f"{folder}: {counts['train']:,} conversations to train on, {counts['val']:,} held out")
    except OSError as error:
        print(f"{arguments[0]} cannot be written: {one_sentence(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
