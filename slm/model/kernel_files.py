"""Kernels of torch's compiler for a CPU: several in one C++ file, which is waited for when one of them is first called.

Torch writes each kernel, the loops between two matrix products, into a file of its own: 30 for a training step. Most of
the time that g++ takes for a file goes to the header and to linking, which do not depend on the kernel. Torch also
waits for g++ before it traces the next function. The kernels and the flags of g++ here are torch's, so no number
changes. Imports torch's compiler, and replaces private parts of it.
"""

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import async_compile
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.cpu_vec_isa import VecAMX, VecISA
from torch._inductor.utils import clear_on_fresh_cache

KERNELS_PER_FILE = 16
"""A file costs as much as two or three kernels, but files are compiled in parallel (docs/log.md, 2026-11-30)."""
KERNEL = re.compile(r'\s*#include <torch/csrc/inductor/cpp_prefix\.h>\s*extern "C"\s+void\s+kernel(\(.*)', re.DOTALL)
"""A kernel as torch writes it. What looks different, for example with headers of its own, keeps its own file."""
HEADERS = """#include <torch/csrc/inductor/cpp_prefix.h>
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sstream>
#include <cstdlib>
#include <cerrno>
"""
"""All headers of a kernel and of its Python binding, which includes them again inside a namespace, to no effect."""

_compiles = VecISA.check_build


def share_files() -> None:
    """Let kernels of functions that are compiled from now on share files, without a test of the compiler before."""
    async_compile.AsyncCompile = _AsyncCompile  # type: ignore[misc]  # the modules that torch writes look it up here
    VecISA.check_build = _check_build  # type: ignore[method-assign, assignment]


def _check_build(isa: VecISA, code: str) -> bool:
    """Whether the compiler knows a vector instruction set that this CPU has.

    Torch compiles a test program for each set. A compiler that knows C++20, which torch needs, knows all but AMX.
    """
    return _compiles(isa, code) if code in (VecAMX._amx_code, VecAMX._amx_fp16_code) else True


class _AsyncCompile(async_compile.AsyncCompile):
    """Compiles the kernels of one compiled function, whose module calls `cpp_pybinding` for each and then `wait`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[list[str], str]] = []  # types of the arguments, and the function from "(" on

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
        match = KERNEL.fullmatch(source_code)
        if match is None:
            return super().cpp_pybinding(argtypes, source_code)
        self.kernels.append((argtypes, match[1]))
        return self.kernels[-1]

    def wait(self, scope: dict[str, Any]) -> None:
        """Start g++. The kernels' names in the module's `scope` stand for functions that wait for it."""
        super().wait(scope)
        names = {id(value): name for name, value in scope.items()}
        num_files = math.ceil(len(self.kernels) / KERNELS_PER_FILE)
        for first in range(num_files):
            kernels = self.kernels[first::num_files]
            get_file = _SharedFile.start(kernels, self.submit)
            for number, kernel in enumerate(kernels):
                name = names[id(kernel)]
                scope[name] = _loaded_at_first_call(scope, name, get_file, number)


@clear_on_fresh_cache
class _SharedFile(CppPythonBindingsCodeCache):
    """The cache of files with several kernels. Each is loaded as a Python module, all from one library."""

    cache: dict[str, Callable[[], Any]] = {}  # noqa: RUF012

    @staticmethod
    def cache_clear() -> None:
        _SharedFile.cache.clear()

    @classmethod
    def start(cls, kernels: list[tuple[list[str], str]], submit: Callable[..., Any]) -> Callable[[], Any]:
        """Let g++ compile a file. Returns a function that waits for it and returns its `path` and `key`."""
        parts = [HEADERS]
        for number, (argtypes, function) in enumerate(kernels):
            types = [argtype.replace("const ", "") for argtype in argtypes]
            arguments = ", ".join(f"parse_arg<{argtype}>(args, {index})" for index, argtype in enumerate(types))
            binding = cls.suffix_template.format(
                arg_len=len(types),
                call_entry_func=f"kernel_{number}({arguments}); Py_RETURN_NONE;",
                entry_func=f"kernel_{number}",
                extra_parse_arg="",
            )
            parts.append(f"static void kernel_{number}{function}\nnamespace binding_{number} {{\n{binding}\n}}\n")
        in_background = async_compile.get_compile_threads() > 1
        return cls.load_async("".join(parts), submit_fn=submit if in_background else None)

    @classmethod
    def _load_library_inner(cls, path: str, key: str) -> Any:
        return SimpleNamespace(path=path)  # the caller adds the key

    @classmethod
    def load_kernel(cls, path: str, key: str, number: int) -> Callable[..., None]:
        class Kernel(CppPythonBindingsCodeCache):
            entry_function = f"kernel_{number}"

        kernel: Callable[..., None] = getattr(Kernel._load_library_inner(path, key), Kernel.entry_function)
        return kernel


def _loaded_at_first_call(
    scope: dict[str, Any], name: str, get_file: Callable[[], Any], number: int
) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        try:
            file = get_file()
            kernel = _SharedFile.load_kernel(file.path, file.key, number)
        except (RuntimeError, OSError, ImportError) as error:  # as torch does while it compiles
            raise BackendCompilerFailed("inductor", error, None) from error
        scope[name] = kernel
        kernel(*arguments)

    return call
