"""Compile a decoder to a `.pte` program for ExecuTorch's XNNPACK backend (phones, CPUs), and run such a program.

Notable: one method, `forward(tokens, start)`, does prefill and decoding, so that a phone holds the weights once. It has
the signature and the constants (`get_max_context_len`, ...) that ExecuTorch's own runner for language models reads.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.checkpoints.engine import EngineModel, import_extra, quiet
from slm.data.tokenizer import Tokenizer
from slm.model import Decoder
from slm.model.config import QUANTISATIONS, ModelConfig
from slm.model.quantised import GROUP, QuantisedEmbedding
from slm.model.static import StaticDecoder

MAX_CALL_TOKENS = 128
"""Tokens of one call, for which the program plans memory: logits take 512 bytes times the vocabulary."""
_XNNPACK = "executorch.backends.xnnpack.partition"
_IDENTIFIER = b"ET12"  # at byte 4 of the file format that this version of ExecuTorch reads and writes


def write_program(
    file: Path, decoder: Decoder, max_length: int, tokenizer: Tokenizer, quantize: str | None = None
) -> None:
    """Compile the decoder for texts of up to `max_length` tokens, with weights and activations rounded as `quantize`.

    Raises `ValueError` for a mixer that cannot be compiled.
    """
    with quiet():
        exir = import_extra("executorch.exir", "device", "format=executorch")
        xnnpack = import_extra(f"{_XNNPACK}.xnnpack_partitioner", "device", "format=executorch")
        if quantize is not None:
            decoder = _with_torchao(decoder, quantize)
    model = StaticDecoder(decoder, max_length).eval()
    max_call = min(MAX_CALL_TOKENS, max_length)
    example = torch.zeros(1, min(5, max_call), dtype=torch.long), torch.zeros(1, dtype=torch.long)
    # A shape with T = 1 is another shape for torch; the program, which checks no such guards, takes it too.
    length = torch.export.Dim("T", min=2, max=max_call)
    constants = {
        "get_max_seq_len": max_call,
        "get_max_context_len": max_length,
        "get_vocab_size": decoder.config.vocab_size,
        "get_bos_id": tokenizer.separator_id,
        "get_eos_ids": tokenizer.eos_id,
        "get_n_layers": len(decoder.config.block_uses),
        "enable_dynamic_shape": True,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
    }
    with torch.no_grad(), quiet():
        exported = torch.export.export(
            model, example, dynamic_shapes={"tokens_1T": {1: length}, "start_1": None}, strict=False
        )
        edge = exir.to_edge_transform_and_lower(
            {"forward": exported}, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods=constants
        )
        # Without this pass a program copies each cache twice per token.
        program = edge.to_executorch(exir.ExecutorchBackendConfig(run_reinplace_pass=True))
    with file.open("wb") as handle:
        program.write_to_file(handle)


def _with_torchao(decoder: Decoder, kind: str) -> Decoder:
    """Return a copy with tensors of torchao, which XNNPACK recognises, and the rounding of `slm.model.quantised`.

    Its head is a matrix of its own, as XNNPACK packs it.
    """
    ao = import_extra("torchao.quantization", "device", f"quantize={kind}")
    per_row, bits = ao.PerAxis(0), QUANTISATIONS[kind][0]
    blocks = ao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        weight_granularity=ao.PerGroup(GROUP) if bits == 4 else per_row,
        weight_scale_dtype=torch.bfloat16 if bits == 4 else None,
    )
    head = ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=per_row)
    decoder = copy.deepcopy(decoder)
    if decoder.config.tie_embeddings:
        decoder.config = dataclasses.replace(decoder.config, tie_embeddings=False)
        rows, width = decoder.embed_tokens.weight.shape
        decoder.lm_head = nn.Linear(width, rows, bias=False, device="meta")
        decoder.lm_head.weight = nn.Parameter(decoder.embed_tokens.weight.detach().clone(), requires_grad=False)
    ao.quantize_(decoder.layers, blocks)
    ao.quantize_(decoder, head, lambda module, _: module is decoder.lm_head)
    decoder.embed_tokens = QuantisedEmbedding(decoder.embed_tokens.weight, 8)  # type: ignore[assignment]
    return decoder


def check_program(file: Path) -> None:
    """Raise `ValueError` unless the file is a complete program of the version that the installed ExecuTorch reads."""
    with file.open("rb") as handle:
        start = handle.read(40)
    if start[4:6] != b"ET":
        raise ValueError(f"checkpoint={file} is not an ExecuTorch program, or is damaged: export it again")
    if start[4:8] != _IDENTIFIER:
        raise ValueError(
            f"checkpoint={file} has format {start[4:8].decode(errors='replace')!r}, and this ExecuTorch reads "
            f"{_IDENTIFIER.decode()!r}: export it again"
        )


class ProgramModel(EngineModel):
    """A `.pte` program in ExecuTorch's runtime, on one thread for each core that the process may use."""

    def __init__(self, file: Path, config: ModelConfig) -> None:
        super().__init__(config, torch.float32, file.stat().st_size)
        check_program(file)
        try:
            with quiet():
                runtime = import_extra("executorch.runtime", "device", f"checkpoint={file}")
                self._program = runtime.Runtime.get().load_program(file)
                self._forward: Any = self._program.load_method("forward")
        except ValueError:
            raise
        except Exception as error:  # the runtime has no error class of its own
            raise ValueError(f"checkpoint={file}: ExecuTorch cannot load it ({error}): export it again") from None
        if self._forward is None:
            raise ValueError(f"checkpoint={file} has no method `forward`, so it is not a program of slm")

    def read(self, tokens: list[int], start: int) -> Tensor:
        """See `EngineModel.read`."""
        parts = []
        for i in range(0, len(tokens), MAX_CALL_TOKENS):
            call = torch.tensor([tokens[i : i + MAX_CALL_TOKENS]])
            (logits_1TV,) = self._forward.execute([call, torch.tensor([start + i])])
            parts.append(logits_1TV[0].clone())  # the next call overwrites the program's output
        return torch.cat(parts)
