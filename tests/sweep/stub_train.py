"""Stands in for train.py where what is tested is who starts it and when: same files, signals and exit codes.

Overrides: output_dir, steps, seconds (of a step), save_every, and do=train | diverge | fail | die | die_once | silent |
cut_off.
Each start and each completion is a line of `history` in the folder above the runs. Imports little, to start quickly.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

given = dict(item.split("=", 1) for item in sys.argv[1:])
folder = Path(given["output_dir"].strip("'"))
steps, save_every = int(given.get("steps", 3)), int(given.get("save_every", 1))
checkpoint = folder / "checkpoints" / "last.ckpt"
step = 0


def note(what: str) -> None:
    with (folder.parent.parent / "history").open("a") as history:
        history.write(f"{what} {folder.name} {step}\n")


def end(status: str, code: int) -> NoReturn:
    result = {"status": status, "steps": step, "planned_steps": steps, "train_loss_final": 2.5, "seed": 1}
    (folder / "result.partial").write_text(json.dumps(result))
    os.replace(folder / "result.partial", folder / "result.json")
    note(status)
    sys.exit(code)


def save() -> None:
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.with_suffix(".partial").write_text(str(step))
    os.replace(checkpoint.with_suffix(".partial"), checkpoint)


def on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    save()
    end("interrupted", 143)


folder.mkdir(parents=True, exist_ok=True)
lock = (folder / ".lock").open("a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("twice")
    sys.exit("error: in use")
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
note("start")
(folder / "config.yaml").touch()
signal.signal(signal.SIGTERM, on_sigterm)
match given.get("do"):
    case "fail":
        print("a word before\nerror: nonsense=1 must be sense", file=sys.stderr)
        sys.exit(1)
    case "diverge":
        end("diverged", 2)
    case "cut_off":
        raise BrokenPipeError("the other side of something is gone")
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
    case "silent":
        sys.exit(0)
if not (folder / "metrics.csv").exists():
    (folder / "metrics.csv").write_text("step,tokens,train/loss,val/loss,time/tokens_per_second\n")
while step < steps:
    time.sleep(float(given.get("seconds", 0)))
    step += 1
    with (folder / "metrics.csv").open("a") as metrics:
        metrics.write(f"{step},{step * 100},{4 - step / 10},,1000.0\n")
    if step % save_every == 0:
        save()
    if given.get("do") == "die_once" and step == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
end("completed", 0)
