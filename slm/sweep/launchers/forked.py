"""The master's side of `fork_server.py`: jobs that start with train.py's imports done.

A server that is killed, or does not answer, costs its jobs nothing: they live on, as those of an earlier master do, and
the next ones start by themselves.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from slm.sweep.job import PID, Job, held

SERVER = Path(__file__).parents[1] / "fork_server.py"
MODULES = ("slm.training.run",)
"""What takes longest of train.py's imports. Not wandb: a folder that it makes on import would go with the first job."""
PATIENCE_SECONDS = 300.0
"""For its imports, on a machine that is busy."""
LONGEST_MESSAGE = 1 << 12


class Forked:
    """A job that a server has started, asked like a `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.server, self.pid = server, pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None where it runs, or nobody is there to tell."""
        self.server.listen()
        return self.server.codes.get(self.pid)


class ForkServer:
    """A server for jobs of one script, in one environment."""

    def __init__(self, script: str, environment: Mapping[str, str]) -> None:
        self.script = script
        self.codes: dict[int, int] = {}
        self._alive: set[int] = set()
        self.lost = False
        """Whether it can be asked no more."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(SERVER), str(theirs.fileno()), script, *MODULES],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def begin(self, job: Job, *, slot: int) -> Forked | None:
        """Start `job`, whose command is the script's; None where it runs already, or the server is lost."""
        asked = {
            "arguments": job.command[1:],
            "environment": dict(job.environment),
            "pid_file": str(job.folder / PID),
            "slot": slot,
        }
        with held(job) as files:
            if files is None:
                return None
            try:
                socket.send_fds(self._socket, [json.dumps(asked).encode()], [file.fileno() for file in files])
            except OSError:
                self.lost = True
                return None
        while not self.lost:
            pid = self._hear()
            if pid is not None:
                return Forked(self, pid)
        return None

    def listen(self) -> None:
        """Take note of what has ended."""
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while not self.lost:
                self._hear()
        self._socket.settimeout(PATIENCE_SECONDS)

    def close(self) -> None:
        """The server ends; its jobs do not."""
        self.lost = True
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _hear(self) -> int | None:
        """Take in one message; returns the job that it is the first word of."""
        try:
            message = self._socket.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            raise
        except OSError:
            message = b""
        self.lost = not message
        if self.lost:
            return None
        heard = json.loads(message)
        if "started" in heard:
            self.codes.pop(heard["started"], None)  # of an earlier process with this id
            self._alive.add(heard["started"])
            return int(heard["started"])
        self.codes[heard["ended"]] = heard["code"]
        first = heard["ended"] not in self._alive
        self._alive.discard(heard["ended"])
        return int(heard["ended"]) if first else None
