"""What the scripts share: a person's mistake is one sentence and exit code 1, and every run has a folder of its own.

Imports no torch. HYDRA_FULL_ERROR=1 or SLM_TRACEBACKS=1 shows where an error came from.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError)


def run_script(main: Callable[[], object], exit_codes: list[int]) -> NoReturn:
    """Run a Hydra `main` that adds to `exit_codes`, and exit with the first code that is not 0."""
    # Decided once and inherited by the processes that Lightning starts, since HYDRA_FULL_ERROR is set for Hydra here:
    # it hands its errors on, instead of printing pages.
    os.environ.setdefault("SLM_TRACEBACKS", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
        sys.stdout.flush()
    except MISTAKES as error:
        exit_codes.append(report(error))
    except (KeyboardInterrupt, RuntimeError) as error:  # while libraries are loaded, some of which rename it
        if not _was_interrupted(error):
            raise
        print("\ninterrupted", file=sys.stderr)
        exit_codes.append(130)
    sys.exit(next((code for code in exit_codes if code), 0))


def _was_interrupted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def report(error: Exception) -> int:
    """Say what a person did wrong in one sentence; returns the exit code for it.

    Nothing is said where nobody reads on (`| head`): the code is that of a program which SIGPIPE ended.
    """
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 141
    if os.environ.get("SLM_TRACEBACKS") == "1":
        raise error
    print(f"error: {one_sentence(error)}", file=sys.stderr)
    return 1


def one_sentence(error: Exception) -> str:
    """The message of an error on one line; of Hydra's pages, what was wrong and what there is instead."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    endings = ("Config search path", "Key '", "full_key", "See https", "object_type")
    kept = list(takewhile(lambda line: not line.startswith(endings), lines))
    said = [line.removeprefix("ValueError raised while resolving interpolation: ") for line in kept if line]
    for place, line in enumerate(said):
        if line.startswith("Available options"):
            said[place:] = [f"{line} {', '.join(said[place + 1 :])}"]
            break
    if isinstance(error, OverrideParseException):
        said.append("a value with spaces, commas or = needs two pairs of quotes, as in \"name='a b, c'\"")
    return "; ".join(said) or type(error).__name__


def new_folder(what: str) -> str:
    """A folder under `outputs/` for a run of `what`, named by the time."""
    now = datetime.now()
    # The random end keeps two runs that start within one second apart.
    return f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}-{what}-{secrets.token_hex(2)}"


def cache_home() -> str:
    """Where caches of this user go (XDG base directory specification)."""
    return str(Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "slm")


def in_quotes(path: Path) -> str:
    """Any path as the value of an override."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"
