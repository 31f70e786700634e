"""Kernels that share files: the numbers are those of torch's own files, and a damaged file is a plain error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._inductor import async_compile
from torch._inductor.cpu_vec_isa import VecAVX512, VecAVX512VNNI, VecISA, valid_vec_isa_list
from torch._inductor.utils import clear_caches

from slm.model import kernel_files
from slm.model.decoder import KERNEL_FILES_RELEASE
from slm.model.kernel_files import share_files
from slm.runtime.machine import explain_compiler_error, why_not_compiled

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or not torch.__version__.startswith(KERNEL_FILES_RELEASE),
        reason=f"kernels share files on Linux in torch {KERNEL_FILES_RELEASE}x",
    ),
    pytest.mark.skipif(why_not_compiled("cpu") is not None, reason="torch.compile does not work here"),
]
TORCHS_OWN = kernel_files._AsyncCompile.__base__


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    """Several kernels, with products of matrices between them, of three dtypes and with a sum over all rows."""
    hidden = torch.softmax(x @ weight, dim=-1).to(torch.bfloat16)
    gated = torch.sigmoid(hidden @ weight.to(torch.bfloat16)).float() * torch.arange(x.shape[0])[:, None]
    return torch.tanh(gated @ weight).exp().mean()


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """The compiler's cache is in `folder`, and it has loaded nothing."""
    clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield
    clear_caches()


def results_and_files(folder: Path) -> tuple[list[Tensor], int]:
    with cache_in(folder):
        x, weight = (
            torch.randn(48, 48, generator=torch.Generator().manual_seed(n), requires_grad=True) for n in (1, 2)
        )
        loss = compiled(mixed)(x, weight)
        loss.backward()
        assert x.grad is not None
        assert weight.grad is not None
        return [loss.detach(), x.grad, weight.grad], len(list(folder.glob("**/*.main.so")))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_compile, "AsyncCompile", TORCHS_OWN)
    monkeypatch.setattr(VecISA, "check_build", kernel_files._compiles)
    share_files()


def test_kernels_that_share_files_give_the_numbers_of_torchs_own_files(
    tmp_path: Path, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, files = results_and_files(tmp_path / "together")
    monkeypatch.setattr(kernel_files, "KERNELS_PER_FILE", 2)
    in_pairs, files_of_pairs = results_and_files(tmp_path / "pairs")
    monkeypatch.setattr(async_compile, "AsyncCompile", TORCHS_OWN)
    alone, own_files = results_and_files(tmp_path / "own")
    assert files == 2 < files_of_pairs < own_files  # one for the function, one for its gradients
    for value, of_a_pair, expected in zip(together, in_pairs, alone, strict=True):
        assert torch.equal(value, expected)
        assert torch.equal(of_a_pair, expected)


def test_a_damaged_file_is_one_sentence_about_the_compilers_cache(
    tmp_path: Path, shared: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(path: str, key: str) -> SimpleNamespace:
        Path(path).write_bytes(b"")
        return SimpleNamespace(path=path)

    monkeypatch.setattr(kernel_files._SharedFile, "_load_library_inner", damage)
    said = r"^torch's compiler failed \(ImportError: .*file too short\): trainer\.compile=false .*cache, /"
    with cache_in(tmp_path), pytest.raises(ValueError, match=said), explain_compiler_error("trainer.compile"):
        compiled(mixed)(torch.ones(8, 8), torch.ones(8, 8))


def test_a_kernel_with_a_header_of_its_own_keeps_its_file(tmp_path: Path, shared: None) -> None:
    function = "void kernel(float* out)\n{\n    out[0] = std::lgamma(5.0f);\n}\n"
    source = f'\n#include <torch/csrc/inductor/cpp_prefix.h>\n#include <cmath>\nextern "C"  {function}'
    out = torch.zeros(1)
    with cache_in(tmp_path):
        compiler = async_compile.AsyncCompile()
        scope = {"named": compiler.cpp_pybinding(["float*"], source)}
        compiler.wait(scope)
        scope["named"](out)
    assert out.item() == pytest.approx(3.1780538)  # log(4!)


def test_instruction_sets_of_this_cpu_that_are_no_longer_tested_compile(tmp_path: Path) -> None:
    with cache_in(tmp_path):
        for isa in valid_vec_isa_list():
            codes = [VecISA._avx_code]
            codes += (
                [VecAVX512._avx512_bf16_code] if isinstance(isa, VecAVX512) and isa._is_avx512_bf16_supported else []
            )
            codes += [VecAVX512VNNI._avx512_vnni_code] if isinstance(isa, VecAVX512VNNI) else []
            for code in codes:
                assert kernel_files._compiles(isa, code), (isa, code)
