"""Build a folder in parts. Each part is done once, by one of several processes, even if the build is interrupted.

A finished part leaves a record, `parts/STAGE-00007.json` in the folder that is being built. The record holds what the
part's function returned, and the size and SHA-256 of every file that it wrote. A part with a record is not done again.

Notable: worker processes run this module and receive their work through pipes. Workers of `multiprocessing` would
import the user's main script, which fails if the script has no `__main__` guard.
"""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from slm.runtime.files import read_json_object, sync, write_json
from slm.runtime.progress import progress
from slm.runtime.system import num_cores

RECORDS = "parts"  # name of the subfolder with the records of finished parts
MAX_PROCESSES = 32
MIN_PARALLEL_BYTES = 32 << 20  # fewer bytes are processed without workers, which take about a second to start

_WORKER_DIED = (
    "a worker process that builds the corpus exited with status {}, probably for lack of memory: try again "
    "on fewer cores (taskset); finished parts are kept"
)

Work = Callable[..., dict[str, Any]]
"""`work(folder, number, *arguments, advance)` writes files into `folder` and calls `advance` with the megabytes done.

It returns a dict that JSON can hold, with the names of the files under "files". Workers must be able to import `work`.
"""


class Part(NamedTuple):
    """The arguments of `Work` for one part (values that JSON can hold), and the approximate size of the part."""

    arguments: tuple[Any, ...]
    num_bytes: int | None


def build_parts(
    folder: Path, stage: str, work: Work, parts: Sequence[Part], *, task: str, start: int = 0, in_process: bool = False
) -> list[dict[str, Any]]:
    """Do all parts that have no record yet; returns the results of all parts, in order.

    The parts are numbered from `start`. The names of their records begin with `stage`, and `task` names the work on the
    progress display. With `in_process`, this process does all parts.
    """
    results: dict[int, dict[str, Any]] = {}
    part_by_number = dict(enumerate(parts, start))
    for number, part in part_by_number.items():
        record = read_json_object(_record_path(folder, stage, number))
        if record.get("arguments") == json.loads(json.dumps(part.arguments)):
            results[number] = record["result"]
    megabytes = {number: (part.num_bytes or 0) / 1e6 for number, part in part_by_number.items()}
    is_size_known = all(part.num_bytes is not None for part in parts)
    total_megabytes = sum(megabytes.values()) if is_size_known else None
    todo = [(number, part.arguments) for number, part in part_by_number.items() if number not in results]
    num_processes = min(len(todo), num_cores(), MAX_PROCESSES)
    is_small = total_megabytes is not None and total_megabytes < MIN_PARALLEL_BYTES / 1e6
    with progress(task, total_megabytes, "MB") as advance:
        advance(sum(megabytes[number] for number in results))
        if in_process or num_processes <= 1 or is_small:
            for number, arguments in todo:
                results[number] = _do_part(folder, stage, work, number, arguments, advance)
        else:
            for number, result in _do_in_workers((folder, stage, work), todo, num_processes):
                results[number] = result
                advance(megabytes[number])
    return [results[number] for number in part_by_number]


def sealed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of every file that finished parts wrote, by file name."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / RECORDS).glob("*.json"))]
    return {name: sealed for record in records for name, sealed in record["sealed"].items()}


def seal(path: Path) -> dict[str, Any]:
    """Flush a file to the disk; returns its size and SHA-256."""
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_path(folder: Path, stage: str, number: int) -> Path:
    return folder / RECORDS / f"{stage}-{number:05d}.json"


def _do_part(
    folder: Path, stage: str, work: Work, number: int, arguments: tuple[Any, ...], advance: Callable[[float], None]
) -> dict[str, Any]:
    result = work(folder, number, *arguments, advance)
    sealed = {name: seal(folder / name) for name in result["files"]}
    write_json(_record_path(folder, stage, number), {"arguments": arguments, "result": result, "sealed": sealed})
    return result


def _do_in_workers(
    call: tuple[Path, str, Work], todo: list[tuple[int, tuple[Any, ...]]], num_processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, result) of each part as soon as it is done. `call` is the folder, the stage and the work."""
    waiting, answers = SimpleQueue[Any](), SimpleQueue[Any]()
    for part in todo:
        waiting.put(part)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "slm.data.parts"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(num_processes)
    ]

    def feed(process: Any) -> None:
        with suppress(Empty):
            while True:
                number, arguments = waiting.get_nowait()
                try:
                    pickle.dump((*call, number, arguments), process.stdin)
                    process.stdin.flush()
                    answers.put((number, *pickle.load(process.stdout)))  # number, result, error
                except (EOFError, OSError):
                    answers.put((number, None, ChildProcessError(_WORKER_DIED.format(process.wait()))))

    try:
        for process in processes:
            Thread(target=feed, args=(process,), daemon=True).start()
        for _ in todo:
            number, result, error = answers.get()
            if error is not None:
                raise error
            yield number, result
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _serve() -> None:
    """Do the parts that arrive on standard input, and exit when it is closed: the parent has ended or was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent ends this one
    calls = SimpleQueue[Any]()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # stdout becomes stderr, so that prints of libraries do not mix with the answers

    def read() -> None:
        while True:
            try:
                calls.put(pickle.load(sys.stdin.buffer))
            except EOFError:
                os._exit(0)  # even in the middle of a part, because another build may now do the same part

    Thread(target=read, daemon=True).start()
    while True:
        folder, stage, work, number, arguments = calls.get()
        answer: tuple[Any, Exception | None]
        try:
            answer = _do_part(folder, stage, work, number, arguments, lambda megabytes: None), None
        except Exception as error:
            if not isinstance(error, ValueError):
                error.add_note(traceback.format_exc())
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
