"""Prefill and decode of the 125M shape, batch 1: slm against transformers' `generate`, interleaved in one run.

    pip install -e ".[test]" -c constraints.txt && python benchmarks/decode_throughput.py

Both have the same weights and must choose the same tokens (in float32; in bfloat16 rounding may make them differ).
Prefill is the time until the logits after the prompt; decode is the time of greedy generation after it. Compilation
takes place in the warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from slm.checkpoints import hf_config
from slm.model import Decoder, KVCache, ModelConfig
from slm.model.decoding import compiled_logits
from slm.runtime.machine import device_name

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


@torch.inference_mode()
def compare(shape: ModelConfig, dtype: torch.dtype, prompt_tokens: int, new_tokens: int, rounds: int) -> None:
    torch.manual_seed(0)
    decoder = Decoder(shape).to(dtype).eval()
    prompt = torch.randint(shape.vocab_size, (1, prompt_tokens))
    sides = {
        "slm": Ours(decoder, prompt, new_tokens),
        "transformers": Theirs(transformers_copy(decoder), prompt, new_tokens),
    }
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
    ratios = [mine / other for mine, other in zip(rates["slm"], rates["transformers"], strict=True)]
    same = sum(a == b for a, b in zip(taken["slm"][-1][2], taken["transformers"][-1][2], strict=True))
    print(f"{'':10}{'ratio':13} prefill {ratios[0]:8.2f}x        decode {ratios[1]:7.2f}x", end="        ")
    print(f"{same} of {new_tokens} tokens equal")


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
