"""Code that all scripts share: a user's mistake becomes one sentence and exit code 1; each run gets its own folder.

Imports no torch. HYDRA_FULL_ERROR=1 or SLM_TRACEBACKS=1 shows where an error came from.
"""

import errno
import gc
import io
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from slm.runtime.interrupts import INTERRUPTED, end_at_interrupt, raise_at_interrupt
from slm.runtime.settings import Kind

MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError)
"""Exceptions that report a mistake of the user; all others are bugs and keep their traceback."""
GPU_MEMORY_SHARE = "SLM_GPU_MEMORY_SHARE"
"""Environment variable with the share of a GPU's memory for a job; sweep.py sets it for jobs that share a GPU."""
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_OVERRIDE = re.compile(r"(\+{0,2}([\w./-]+)=)(.*)", re.DOTALL)
_QUOTED = re.compile(r"""("([^"\\]|\\.)*"|'([^'\\]|\\.)*')""", re.DOTALL)
_PLAIN = re.compile(r"[\w.+/:-]*", re.ASCII)
_BRACKETS_AND_QUOTES = ("[", "{", "'", '"')


def run_script(main: Callable[[], object], exit_codes: list[int], kinds: Mapping[str, Kind]) -> NoReturn:
    """Run a Hydra `main`, which appends to `exit_codes`, and exit with the first code that is not 0.

    `kinds` are the kinds of values of the script's keys, for `quote_texts`.
    """
    is_program = raise_at_interrupt()
    sys.argv[1:] = quote_texts(sys.argv[1:], kinds)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe's encoding on Windows may lack characters of a generated text
            stream.reconfigure(errors="replace")
    # With HYDRA_FULL_ERROR=1 Hydra raises its errors instead of printing them over many lines. SLM_TRACEBACKS keeps the
    # user's value of HYDRA_FULL_ERROR. The processes that Lightning starts inherit both.
    os.environ.setdefault("SLM_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
        sys.stdout.flush()
    except MISTAKES as error:
        exit_codes.append(report(error))
    except (KeyboardInterrupt, Exception) as error:
        # A library that Ctrl-C interrupts while it is imported may raise another error from the KeyboardInterrupt.
        if not _was_interrupted(error):
            raise
        exit_codes.append(report(error))
    if is_program:
        end_at_interrupt()  # while Python shuts down
    sys.exit(next((code for code in exit_codes if code), 0))


def quote_texts(words: Iterable[str], kinds: Mapping[str, Kind]) -> list[str]:
    """Return the words of a command line with quotes around the values that are texts, as Hydra's grammar needs them.

    A value of a key that takes any text (`prompt`) is that text to the last character, unless it is null or in a pair
    of quotes. A value of a key that takes a name or a path, if Hydra would not read it as a text. A value of any other
    key, if Hydra cannot read it and it does not begin with a bracket or a quote. With -m, commas separate values.
    """
    words = list(words)
    is_multirun = not {"-m", "--multirun"}.isdisjoint(words)
    return [_quote_text(word, kinds, is_multirun=is_multirun) for word in words]


def _quote_text(word: str, kinds: Mapping[str, Kind], *, is_multirun: bool) -> str:
    match = _OVERRIDE.fullmatch(word)
    if match is None:
        return word
    start, key, value = match.groups()
    kind = kinds.get(key)
    takes_text = kind is not None and kind.accepts("a, b") and not kind.accepts(["a", "b"])
    if value == "null" or _QUOTED.fullmatch(value) or (_PLAIN.fullmatch(value) and not takes_text):
        return word
    parsed = None
    with suppress(HydraException):
        parsed = OverridesParser.create().parse_override(word)
    # Hydra reads the word as the runs of a sweep, or as just this text. A command that a report repeats stays as typed.
    if parsed is not None and (is_multirun if parsed.is_sweep_override() else parsed.value() == value):
        return word
    if kind is not None and takes_text and kind.accepts(""):  # any text: nothing in it has a meaning for Hydra
        return start + _in_double_quotes(re.sub(r"(\\*)\$\{", r"\1\1\\${", value))
    if takes_text:
        is_readable = parsed is not None and isinstance(parsed.value(), str)
    else:
        is_readable = parsed is not None or value.startswith(_BRACKETS_AND_QUOTES)
    return word if is_readable else start + _in_double_quotes(value)


def _in_double_quotes(text: str) -> str:
    """Return the text as a quoted value of Hydra. Backslashes count only before a quote, where they are doubled."""
    escaped = re.sub(r"(\\*)(\"|\Z)", lambda match: match[1] * 2 + ("\\" if match[2] else "") + match[2], text)
    return f'"{escaped}"'


@contextmanager
def quick_imports() -> Iterator[None]:
    """Keep Python's garbage collector out of the imports in this context, and what they made out of later collections.

    The collector would go through all of it several times: in train.py, over a second until the first step.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # a second freeze would keep the garbage of the first run of a multirun
            gc.freeze()
        gc.enable()


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether the error, or an error that it was raised from, is a KeyboardInterrupt."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def report(error: BaseException) -> int:
    """Print a user's mistake in one sentence; returns the exit code of the script.

    If the reader of the output has closed the pipe (`| head`), nothing is printed and the exit code is 141, as for a
    program that SIGPIPE ends. With SLM_TRACEBACKS=1 the error is raised again. For an error that Ctrl-C caused,
    `interrupted` is printed and the exit code is 130.
    """
    if _was_interrupted(error):
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 141
    if os.environ.get("SLM_TRACEBACKS") == "1":
        raise error
    print(f"error: {one_sentence(error)}", file=sys.stderr)
    return 1


def one_sentence(error: BaseException) -> str:
    """Return the message of an error on one line. Long messages of Hydra are cut to the mistake and the options."""
    if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
        named = f"{error.filename}: " if error.filename else ""  # without it: that of output_dir, cache_dir or /tmp
        return f"{named}{os.strerror(error.errno)}: free space on that disk, and give the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    starts_of_details = ("Config search path", "Key '", "full_key", "See https", "object_type")
    main_lines = takewhile(lambda line: not line.startswith(starts_of_details), lines)
    sentences = [line.removeprefix("ValueError raised while resolving interpolation: ") for line in main_lines if line]
    for index, line in enumerate(sentences):
        if line.startswith("Available options"):  # Hydra lists them on the lines that follow
            sentences[index:] = [f"{line} {', '.join(sentences[index + 1 :])}"]
            break
    if isinstance(error, OverrideParseException):
        sentences.append("a value with spaces, commas or = needs two pairs of quotes, as in \"name='a b, c'\"")
    return "; ".join(sentences) or type(error).__name__


def new_folder_path(kind: str) -> str:
    """Return the path of a new folder under `outputs/`, named by the time and the `kind` of run."""
    now = datetime.now()
    # The random suffix separates two runs that start within one second.
    return f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}-{kind}-{secrets.token_hex(2)}"


def cache_home() -> str:
    """Return the path of slm's folder among the user's caches (XDG base directory specification)."""
    return str(Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "slm")


def in_quotes(path: Path) -> str:
    """Return the path in single quotes, as the value of a Hydra override."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"
