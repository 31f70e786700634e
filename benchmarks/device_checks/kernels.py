"""Checks of the model alone: attention, head and loss, decoding, and every mixer against the CPU."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from device_checks.common import device_of, main_kernel, milliseconds, peak_gb, plan_of, reset
from slm.evaluation.speed import measure_speed
from slm.model import Decoder, ModelConfig
from slm.model import loss as loss_module
from slm.model.loss import chunk_loss, cross_entropy
from slm.model.mixers.softmax import causal_attention
from slm.model.positions import alibi_slopes, document_block_mask
from slm.runtime.machine import can_compile, native_bfloat16

Found = dict[str, Any]


def attention(size: str) -> Found:
    """Time, memory and kernel of `causal_attention`, forward and backward, by case, at the shape of 125M."""
    device = device_of(size)
    B, H, K, T, C = (16, 9, 3, 2048, 64) if size == "gpu" else (1, 6, 2, 256, 16)
    dense = torch.arange(T, device=device).expand(B, T) // (T // 4) * (T // 4)  # four documents a sequence
    slopes = alibi_slopes(H)
    cases: dict[str, tuple[torch.dtype, list[float], Any]] = {
        "bf16 causal": (torch.bfloat16, [], None),
        "bf16 documents, dense mask": (torch.bfloat16, [], dense),
        "bf16 alibi": (torch.bfloat16, slopes, None),
        "float32 causal": (torch.float32, [], None),
        "float32 documents, dense mask": (torch.float32, [], dense),
    }
    if size == "gpu":
        cases["bf16 documents, FlexAttention"] = (torch.bfloat16, [], document_block_mask(dense))
    found: Found = {"shape": f"{B} x {T} tokens, {H} heads of {C}, {K} for keys"}
    for name, (dtype, case_slopes, starts) in cases.items():
        reset()
        # FlexAttention is a kernel only where it is compiled.
        attend = torch.compile(causal_attention, dynamic=False) if "Flex" in name else causal_attention
        q = torch.randn(B, H, T, C, device=device, dtype=dtype, requires_grad=True)
        k, v = (torch.randn(B, K, T, C, device=device, dtype=dtype, requires_grad=True) for _ in range(2))

        def work(q=q, k=k, v=v, attend=attend, case_slopes=case_slopes, starts=starts) -> None:
            attend(q, k, v, C**-0.5, case_slopes, starts).sum().backward()

        try:
            time = milliseconds(work, device, 5)
            found[name] = {"ms": time, "peak_gb": peak_gb(), "kernel": main_kernel(work, device)}
        except torch.OutOfMemoryError:
            found[name] = {"error": "out of memory"}
        del q, k, v, work
    return found


def loss_by_chunk(size: str) -> Found:
    """Head and loss of one pass by tokens a chunk, compiled and not. The default is in `chunk` and first."""
    device, plan = device_of(size), plan_of(size, "125m")
    N, D, V = plan.micro_batch_size * plan.sequence_length, plan.model.hidden_size, plan.model.vocab_size
    x = torch.randn(N, D, device=device, requires_grad=True)
    w = (0.02 * torch.randn(V, D, device=device)).requires_grad_()
    y = torch.randint(V, (N,), device=device)
    default = loss_module.CHUNK_TOKENS[device]
    chunks = [default, *(1024, 2048, 4096, 8192)] if size == "gpu" else [default, N // 2]
    found: Found = {"tokens": N, "vocabulary": V, "chunk": default}
    for name, function in (("compiled", torch.compile(chunk_loss, dynamic=False)), ("eager", chunk_loss)):
        for chunk in dict.fromkeys(chunks):
            loss_module.CHUNK_TOKENS[device] = chunk

            def work(function=function) -> None:
                with torch.autocast(device, torch.bfloat16, enabled=native_bfloat16(device), cache_enabled=False):
                    loss = cross_entropy(x, w, y, function)
                loss.backward()

            found[f"{name} {chunk}, ms"] = milliseconds(work, device, 5)
    return found | {"peak_gb": peak_gb()}


def decoding(size: str) -> Found:
    """Tokens/s of one sequence in bfloat16, compiled and not, and of block sharing against the same tensors without."""
    device = device_of(size)
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    tokens = (512, 128) if size == "gpu" else (16, 8)
    settings: Found = {"repetitions": 2, "prompt_tokens": tokens[0], "new_tokens": tokens[1], "cache": True}
    found: Found = {"dtype": str(dtype)}
    for model, compile in (("125m", True), ("125m", False), ("ls", True)):
        reset()
        decoder = Decoder(plan_of(size, model).model).to(device, dtype).eval().requires_grad_(False)
        entry = measure_speed(decoder, settings | {"compile": compile and can_compile(device)})
        name = f"{model}, {'compiled' if entry['compiled'] else 'eager'}"
        found[name] = {key: round(entry[f"{key}_tokens_per_second"]) for key in ("prefill", "decode")}
        if entry["without_sharing"]:
            found[name]["decode without sharing"] = round(entry["without_sharing"]["decode_tokens_per_second"])
        if device == "cuda":
            found[name]["of bandwidth"] = round(
                entry["decode_tokens_per_second"] * entry["model_bytes"] / _bandwidth(device), 3
            )
    return found


def _bandwidth(device: str) -> float:
    """Bytes per second that a copy of 1 GB reads and writes."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device, 10) * 1e3


MIXERS: dict[str, Found] = {
    "F": {},
    "F alibi": {"position": "alibi"},
    "F documents": {},
    "F shared": {"layer_sharing": "immediate", "num_repeats": 2},
    "S": {"mixer_pattern": "S", "sliding_window": 100},
    "P": {"mixer_pattern": "P"},
    "L": {"mixer_pattern": "L"},
    "G": {"mixer_pattern": "G"},
}
TOLERANCE = {"loss": 0.01, "gradient": 0.08}
"""Of bfloat16 matmuls. On a CPU, uncompiled, the gradients of two blocks of state-space layers are off by 0.046."""


def mixers(size: str) -> Found:
    """Loss and gradients of each mixer, compiled and under autocast, against the CPU in float64, uncompiled."""
    found: Found = {"tolerance": TOLERANCE}
    for name, fields in MIXERS.items():
        reset()
        differences = _difference(device_of(size), 256 if size == "gpu" else 128, fields, documents="documents" in name)
        fits = all(differences[kind] <= limit for kind, limit in TOLERANCE.items())
        found[name] = {kind: float(f"{value:.2g}") for kind, value in differences.items()} | {"met": fits}
    return found | {"met": all(entry["met"] for name, entry in found.items() if name in MIXERS)}


def _difference(device: str, length: int, fields: Found, *, documents: bool) -> dict[str, float]:
    """Absolute of the loss, and relative of the gradient that differs most."""
    torch.manual_seed(0)
    shape: Found = {"vocab_size": 300, "hidden_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    config = ModelConfig(**shape, intermediate_size=256, init_std=0.05, **fields)
    exact = Decoder(config)
    fast = copy.deepcopy(exact).to(device)
    exact.double()
    if can_compile(device):
        fast.compile_blocks()
    tokens = torch.randint(300, (2, length + 1))
    numbers = (tokens[:, :-1] % 50 == 7).cumsum(1) if documents else None

    def loss_of(decoder: Decoder, device: str) -> Tensor:
        at = tokens.to(device)
        return decoder.loss(at[:, :-1], at[:, 1:], None if numbers is None else numbers.to(device))

    expected = loss_of(exact, "cpu")
    expected.backward()
    with torch.autocast(device, torch.bfloat16, enabled=native_bfloat16(device), cache_enabled=False):
        loss = loss_of(fast, device)
    loss.backward()
    gradients = [
        ((a.grad - b.grad.cpu().double()).norm() / a.grad.norm().clamp(min=1e-12)).item()  # type: ignore[union-attr]
        for a, b in zip(exact.parameters(), fast.parameters(), strict=True)
    ]
    return {"loss": abs(expected.item() - loss.item()), "gradient": max(gradients)}
