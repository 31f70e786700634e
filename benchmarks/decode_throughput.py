"""Prefill and decode of the 125M shape, batch 1: slm, transformers' `generate` and llama.cpp, interleaved in one run.

    pip install -e ".[test]" -c constraints.txt && python benchmarks/decode_throughput.py
    pip install llama-cpp-python gguf             then llama.cpp is measured too; pip compiles it in some minutes

All have the same weights and must choose the same tokens (in float32; in 16 bits rounding may make them differ).
llama.cpp has 16 bits as float16, the others as bfloat16. Prefill is the time until the logits after the prompt; decode
is the time of greedy generation after it. Compilation takes place in the warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from slm.checkpoints import hf_config
from slm.model import Decoder, KVCache, ModelConfig
from slm.model.decoding import compiled_logits
from slm.runtime.machine import device_name
from slm.runtime.system import num_cores

SHAPE = ModelConfig(
    vocab_size=32000, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, intermediate_size=1536
)


def transformers_copy(decoder: Decoder) -> LlamaForCausalLM:
    values = hf_config(decoder.config, bos_id=None, eos_id=0)
    theirs = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in values.items() if k not in ("model_type", "slm", "dtype")})
    )
    theirs.load_state_dict({f"model.{name}": tensor for name, tensor in decoder.state_dict().items()}, strict=False)
    theirs.generation_config.eos_token_id = None
    return theirs.to(decoder.head_weight.dtype).eval()


class Ours:
    def __init__(self, decoder: Decoder, prompt: Tensor, new_tokens: int) -> None:
        self.next_logits, self.prompt, self.new = compiled_logits(decoder), prompt, new_tokens
        self.config, self.dtype = decoder.config, decoder.head_weight.dtype

    def __call__(self) -> tuple[float, float, list[int]]:
        cache = KVCache(self.config, batch_size=1, max_length=self.prompt.shape[1] + self.new, dtype=self.dtype)
        begin = time.perf_counter()
        tokens = [int(self.next_logits(self.prompt, cache).argmax())]
        filled = time.perf_counter()
        while len(tokens) < self.new:
            tokens.append(int(self.next_logits(torch.tensor([[tokens[-1]]]), cache).argmax()))
        return filled - begin, time.perf_counter() - filled, tokens


class Theirs:
    def __init__(self, model: LlamaForCausalLM, prompt: Tensor, new_tokens: int) -> None:
        self.model, self.prompt, self.new = model, prompt, new_tokens

    def __call__(self) -> tuple[float, float, list[int]]:
        begin = time.perf_counter()
        self.model(self.prompt, logits_to_keep=1, use_cache=True)
        filled = time.perf_counter()
        out = self.model.generate(self.prompt, max_new_tokens=self.new, do_sample=False, pad_token_id=0)
        # Subtract prefill: `generate` fills its cache again, which is not decoding.
        return filled - begin, time.perf_counter() - filled - (filled - begin), out[0, self.prompt.shape[1] :].tolist()


class LlamaCpp:
    def __init__(self, decoder: Decoder, prompt: Tensor, new_tokens: int) -> None:
        from llama_cpp import Llama

        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            write_gguf(decoder, Path(file.name))
            context = prompt.shape[1] + new_tokens
            threads = {"n_threads": num_cores(), "n_threads_batch": num_cores()}
            self.model = Llama(file.name, n_ctx=context, n_batch=context, n_ubatch=context, verbose=False, **threads)
        self.prompt, self.new = prompt[0].tolist(), new_tokens

    def __call__(self) -> tuple[float, float, list[int]]:
        self.model.reset()
        begin = time.perf_counter()
        self.model.eval(self.prompt)
        tokens = [self._best()]
        filled = time.perf_counter()
        while len(tokens) < self.new:
            self.model.eval([tokens[-1]])
            tokens.append(self._best())
        return filled - begin, time.perf_counter() - filled, tokens

    def _best(self) -> int:
        logits = self.model._ctx.get_logits_ith(-1)
        return int(np.ctypeslib.as_array(logits, shape=(self.model.n_vocab(),)).argmax())


def write_gguf(decoder: Decoder, path: Path) -> None:
    """Write a Llama-shaped decoder without a tokenizer, in float32 or float16."""
    from gguf import GGMLQuantizationType, GGUFWriter

    config, is_float32 = decoder.config, decoder.head_weight.dtype == torch.float32
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, tensor in decoder.state_dict().items():
        heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp rotates neighbouring pairs, and so do these rows then
            tensor = tensor.view(heads, 2, config.head_width // 2, -1).transpose(1, 2).reshape(tensor.shape)
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        name = "output_norm.weight" if name == "norm.weight" else name
        dtype = np.float32 if is_float32 or tensor.dim() == 1 else np.float16
        kind = GGMLQuantizationType.F32 if dtype == np.float32 else GGMLQuantizationType.F16
        writer.add_tensor(name, tensor.float().numpy().astype(dtype), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_NAMES = {
    "embed_tokens": "token_embd", "layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


@torch.inference_mode()
def compare(shape: ModelConfig, dtype: torch.dtype, prompt_tokens: int, new_tokens: int, rounds: int) -> None:
    torch.manual_seed(0)
    decoder = Decoder(shape).to(dtype).eval()
    prompt = torch.randint(shape.vocab_size, (1, prompt_tokens))
    sides = {
        "slm": Ours(decoder, prompt, new_tokens),
        "transformers": Theirs(transformers_copy(decoder), prompt, new_tokens),
    }
    if find_spec("llama_cpp"):
        sides["llama.cpp"] = LlamaCpp(decoder, prompt, new_tokens)
    taken: dict[str, list[tuple[float, float, list[int]]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            found = side()
            if number:
                taken[name].append(found)
    rates = {
        name: (
            prompt_tokens / statistics.median(one[0] for one in found),
            (new_tokens - 1) / statistics.median(one[1] for one in found),
        )
        for name, found in taken.items()
    }
    for name, (prefill, decode) in rates.items():
        print(f"{str(dtype)[6:]:9} {name:13} prefill {prefill:8,.0f} tok/s   decode {decode:7.1f} tok/s")
    for name in list(sides)[1:]:
        prefill, decode = (mine / other for mine, other in zip(rates["slm"], rates[name], strict=True))
        same = sum(a == b for a, b in zip(taken["slm"][-1][2], taken[name][-1][2], strict=True))
        ratios = f"prefill {prefill:8.2f}x        decode {decode:7.2f}x"
        print(f"{'':9} ratio to {name:13} {ratios}        {same} of {new_tokens} tokens equal", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SHAPE.num_layers)
    args = parser.parse_args()
    print(
        f"{device_name('cpu')}, torch {torch.__version__}, 125M shape ({args.layers} layers), batch 1, "
        f"{args.prompt_tokens} + {args.new_tokens} tokens, medians of {args.rounds}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        compare(
            dataclasses.replace(SHAPE, num_layers=args.layers), dtype, args.prompt_tokens, args.new_tokens, args.rounds
        )


if __name__ == "__main__":
    main()
