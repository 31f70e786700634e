"""With this folder on PYTHONPATH, slm lacks on Linux what it lacks on Windows, in all processes that it starts.

For slm (libraries are built for Linux) modules, functions, signals and flags of POSIX are gone. For all, /proc is gone
and processes do not fork; a folder cannot be opened; only what is open for writing can be synced; a file that this
process has open, or mapped, is neither renamed nor replaced. Text without an explicit encoding is an error in slm.
Not like Windows: the separators of paths, and what a signal does to a process.
"""

import builtins
import fcntl as _fcntl
import io
import multiprocessing
import os
import shlex
import signal
import sys
import warnings
from types import ModuleType
from typing import Any

MODULES = shlex.split("fcntl resource pwd grp termios tty pty")
NAMES = {
    os: shlex.split("""
        fork forkpty sched_getaffinity uname getuid geteuid getpgid killpg setsid getsid sysconf pread wait4
        O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC
    """),
    signal: shlex.split("SIGKILL SIGUSR1 SIGUSR2 SIGHUP SIGQUIT SIGALRM"),
}

_readlink, _listdir, _open, _io_open, _fsync = os.readlink, os.listdir, os.open, io.open, os.fsync
_import = builtins.__import__


def _is_slm(name: Any) -> bool:
    return str(name).partition(".")[0] in ("slm", "__main__", "__mp_main__")


def _import_module(name: str, globals: Any = None, *args: Any, **options: Any) -> ModuleType:
    if name in MODULES and _is_slm((globals or {}).get("__name__")):
        raise ModuleNotFoundError(f"No module named '{name}'")
    return _import(name, globals, *args, **options)


def _hide(module: ModuleType, names: list[str]) -> None:
    hidden = {name: module.__dict__.pop(name) for name in names}

    def get(name: str) -> Any:
        if name not in hidden or _is_slm(sys._getframe(1).f_globals["__name__"]):
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
        return hidden[name]

    module.__getattr__ = get  # type: ignore[method-assign]


def _is_linux_only(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/proc")


def _open_file(file: Any, *args: Any, **options: Any) -> Any:
    if _is_linux_only(file):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return _io_open(file, *args, **options)


def _open_handle(path: Any, *args: Any, **options: Any) -> int:
    if _is_linux_only(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return _open(path, *args, **options)


def _fsync_if_writable(file: Any) -> None:
    number = file if isinstance(file, int) else file.fileno()
    if _fcntl.fcntl(number, _fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    _fsync(number)


def _in_use() -> set[str]:
    """Files that this process has open or mapped."""
    files = set()
    for number in _listdir("/proc/self/fd"):
        try:
            files.add(_readlink(f"/proc/self/fd/{number}"))
        except OSError:  # of the listing itself
            continue
    with _io_open("/proc/self/maps") as maps:
        return files | {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}


def _refusing_files_in_use(function: Any) -> Any:
    def rename(source: Any, target: Any, **options: Any) -> None:
        for path in map(os.path.realpath, (source, target)):
            if used := [file for file in _in_use() if file == path or file.startswith(path + "/")]:
                raise PermissionError(13, "The process cannot access the file because it is being used", used[0])
        function(source, target, **options)

    return rename


builtins.open = io.open = _open_file
os.open, os.fsync = _open_handle, _fsync_if_writable
os.replace, os.rename = map(_refusing_files_in_use, (os.replace, os.rename))
if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method("spawn")
builtins.__import__ = _import_module
for module, names in NAMES.items():
    _hide(module, names)
warnings.filterwarnings("ignore", category=EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module=r"slm\b")
