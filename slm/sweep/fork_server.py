"""A process that has imported what train.py needs, and forks a child for each job of it: `launchers/forked.py`.

Importing torch and Lightning takes seconds of a core, longer than a small job may train. Started by path, as
`python -P fork_server.py SOCKET SCRIPT MODULE...`, this imports the modules while there is neither a thread nor a torch
operation, and then does for each job what a shell would: the child is `python SCRIPT ...`, but for what is imported.

Messages are packets of JSON. In comes a job (`arguments`, `environment`, `pid_file`, `slot`), with the descriptors of
its lock and its log. Out go `{"started": pid}`, said by the child once it is a session of its own, and
`{"ended": pid, "code": code}`, the code negative for a signal. When the other side is gone this ends; children live on.
"""

import json
import os
import runpy
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

REAP_SECONDS = 0.05
LONGEST_MESSAGE = 1 << 17


def main() -> None:
    """Serve until the other side is gone; in a child, become the script."""
    number, script, *modules = sys.argv[1:]
    sys.path.insert(0, str(Path(script).parent))  # as `python SCRIPT` has it
    for module in modules:
        import_module(module)
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a process with threads cannot be forked")
    job = None
    with suppress(BrokenPipeError, ConnectionResetError), socket.socket(fileno=int(number)) as master:
        job = serve(master)
    if job is not None:
        sys.argv = job
        runpy.run_path(job[0], run_name="__main__")


def serve(master: socket.socket) -> list[str] | None:
    """In each child the command line of its job; None at the end."""
    while True:
        for child, code in ended():
            master.send(json.dumps({"ended": child, "code": code}).encode())
        if not select.select([master], [], [], REAP_SECONDS)[0]:
            continue
        message, files, _, _ = socket.recv_fds(master, LONGEST_MESSAGE, 2)
        if not message:
            return None
        if os.fork() == 0:
            return begin(json.loads(message), files[1], master)
        for file in files:
            os.close(file)


def begin(job: dict[str, Any], log: int, master: socket.socket) -> list[str]:
    """Make this process the job's, as `slm/sweep/job.py` does of a new one; returns the command line."""
    os.setsid()
    for name in (1, 2):  # standard input is empty here too
        os.dup2(log, name)
    os.environ.update(job["environment"])
    Path(job["pid_file"]).write_text(f"{os.getpid()} {job['slot']} {os.uname().nodename}\n")
    master.send(json.dumps({"started": os.getpid()}).encode())
    return list(job["arguments"])


def ended() -> Iterator[tuple[int, int]]:
    """Children that have ended, and how."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


if __name__ == "__main__":
    main()
