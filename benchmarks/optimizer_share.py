"""Share of the optimizer in a training step of `tiny`: `python benchmarks/optimizer_share.py [repetitions]`.

A repetition is one forward and backward pass of 16 x 256 tokens and one step of each optimizer, in turn, so that all
run under the same load; figures are medians. Blocks are not compiled.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from slm.model import Decoder, ModelConfig
from slm.runtime.machine import native_bfloat16
from slm.training.optim import make_adamw, make_muon
from slm.training.parametrization import parameter_kinds

TINY = {"vocab_size": 4096, "hidden_size": 128, "num_layers": 8, "num_heads": 4, "num_kv_heads": 2}
OPTIM = {"lr": 1e-6, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.95, "iterations": 5}


def torchs_muon(decoder: Decoder) -> Callable[[], None]:
    hidden = [p for p, kind in parameter_kinds(decoder).items() if kind == "hidden"]
    rest = [p for p, kind in parameter_kinds(decoder).items() if kind != "hidden"]
    pair = (torch.optim.Muon(hidden, lr=1e-6, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(rest, fused=True))
    return lambda: [optimizer.step() for optimizer in pair]  # type: ignore[func-returns-value]


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    decoder = Decoder(ModelConfig(**TINY, intermediate_size=384))
    tokens = torch.randint(4096, (16, 257))

    def forward_and_backward() -> None:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bfloat16("cpu")):
            loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()

    timed = {
        "forward and backward": forward_and_backward,
        "AdamW": make_adamw(decoder, OPTIM).step,
        "Muon": make_muon(decoder, OPTIM).step,
        "torch.optim.Muon + AdamW": torchs_muon(decoder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repetition in range(repetitions + 2):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            if repetition >= 2:
                seconds[name].append(time.perf_counter() - start)
    whole = statistics.median(seconds["forward and backward"])
    for name, values in seconds.items():
        typical = statistics.median(values)
        share = "" if name == "forward and backward" else f"  {typical / (whole + typical):6.1%} of the step"
        print(f"{name:26s} {1e3 * typical:8.1f} ms{share}")


if __name__ == "__main__":
    main()
