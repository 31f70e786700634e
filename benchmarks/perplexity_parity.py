"""Logits, sliding-window perplexity and time of slm and of transformers on a released checkpoint.

    python benchmarks/perplexity_parity.py CHECKPOINT TEXT [--tokens 5120] [--batch-tokens 4096] [--dtype float32]

CHECKPOINT is a folder that both load (such as SmolLM2-135M), TEXT a plain file (such as wiki.test.raw of WikiText-2).
The loop around transformers is the usual one: one window per forward pass, labels of -100 for context. Both run in the
same process, one after the other, after a first window that is not timed. Needs the [test] extra (transformers).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slm.checkpoints import load
from slm.evaluation.encode import encode
from slm.evaluation.perplexity import Protocol, perplexity
from slm.evaluation.texts import read_text

LOGIT_TOKENS = 1024


def main() -> None:
    arguments = parse()
    dtype = getattr(torch, arguments.dtype)
    decoder, tokenizer, _ = load(arguments.checkpoint, dtype=dtype)
    reference, ids = transformers_side(arguments, dtype)
    data = {"name": "local", "source": "local", "paths": arguments.text, "val_paths": None, "text_column": "text"}
    text = read_text(data, cache_dir=Path.cwd())
    stream = encode(text, tokenizer, bos="never", max_tokens=arguments.tokens)
    same = stream.tokens.tolist() == ids[0].tolist()
    print(f"tokens       {len(stream.tokens):,}; the same ids as transformers' tokenizer: {same}")
    with torch.inference_mode():
        window = ids[:, :LOGIT_TOKENS]
        difference = (decoder(window).float() - reference(window).logits.float()).abs().max().item()
    print(f"logits       largest difference over the first {window.shape[1]:,} tokens: {difference:.3g}")
    protocol = Protocol(name="sliding", max_length=arguments.max_length, stride=arguments.stride)
    ours, seconds = timed(lambda: perplexity(decoder, stream, protocol, batch_tokens=arguments.batch_tokens))
    theirs, their_seconds = timed(lambda: usual_loop(reference, ids, arguments.max_length, arguments.stride))
    print(f"ours         perplexity {ours['perplexity']:.6f}, {ours['tokens']:,} tokens, {seconds:.1f} s")
    print(f"transformers perplexity {theirs:.6f}, {their_seconds:.1f} s")
    ratio = ours["perplexity"] / theirs
    print(f"difference   {ratio - 1:+.2e} relative; ours takes {seconds / their_seconds:.2f} of the time")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=5120)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


def transformers_side(arguments: argparse.Namespace, dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
    """Its model and its ids of the text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    content = Path(arguments.text).read_bytes().decode()
    ids = tokenizer(content, return_tensors="pt", add_special_tokens=False, verbose=False).input_ids
    return model, ids[:, : arguments.tokens]


@torch.inference_mode()
def usual_loop(model: Any, ids: torch.Tensor, max_length: int, stride: int) -> float:
    nats, count, before, total = 0.0, 0, 0, ids.shape[1]
    for begin in range(0, total, stride):
        end = min(begin + max_length, total)
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : before - end] = -100
        scored = int((labels[:, 1:] != -100).sum())
        nats, count, before = nats + model(window, labels=labels).loss.item() * scored, count + scored, end
        if end == total:
            break
    return math.exp(nats / count)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


if __name__ == "__main__":
    main()
