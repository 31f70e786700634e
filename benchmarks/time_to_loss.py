"""Validation loss against seconds of training: `python train.py` as it comes beside a plain recipe, in equal time.

    python benchmarks/time_to_loss.py                                        three seeds: eight runs
    python benchmarks/time_to_loss.py --seeds 1 --rates 2e-3 --out runs/ttl  one seed, and keep the runs

The plain recipe is what a user would otherwise write: transformers' Llama of the same shape, compiled, in the same
precision, AdamW with a cosine schedule, on the same text, tokenizer, sequence length and validation tokens. Its clock
is that of train.py: optimizer steps, without compilation and validation. It gets as many seconds as train.py took, and
of `--rates` the one with the lowest loss at the first seed. The two take turns, seed by seed. Needs the [test] extra.

Prints a row per share of the time with both losses, averaged over seeds, then each seed's final losses and the share
of its time after which train.py had reached the plain recipe's final loss, interpolated between validations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from train_throughput import CONF, composed, transformers_llama

from slm.composition.budget import model_config
from slm.data.corpus import Corpus, prepare
from slm.data.loader import train_loader, val_batches
from slm.training.hardware import Hardware, resolve_hardware

Curve = list[tuple[float, float]]  # (seconds, validation loss in nats per token), in order
WARMUP_SHARE, FINAL_RATE_SHARE = 0.05, 0.1  # of the steps, and of the peak rate, as in the paper's recipe
NUM_VALIDATIONS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3], help="of the plain recipe")
    parser.add_argument("--plain-batch-tokens", type=int, default=4096, help="tokens per step of the plain recipe")
    parser.add_argument("--overrides", nargs="*", default=[], help="settings for train.py, which both recipes use")
    parser.add_argument("--out", type=Path, help="a folder for the runs and curves.json; a temporary one by default")
    args = parser.parse_args()
    settings = composed(*args.overrides)
    corpus = prepare(settings["data"], settings["tokenizer"], cache_dir=Path(settings["cache_dir"]))
    hardware = resolve_hardware(settings["trainer"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        ours: dict[int, Curve] = {}
        plain: dict[int, Curve] = {}
        rates = args.rates
        for seed in args.seeds:
            ours[seed] = our_curve(folder / f"seed{seed}", seed, args.overrides)
            train_plain = partial(plain_curve, settings, corpus, hardware, seed, ours[seed][-1][0])
            curves = {rate: train_plain(rate, args.plain_batch_tokens) for rate in rates}
            best_rate = min(curves, key=lambda rate: curves[rate][-1][1])
            rates, plain[seed] = [best_rate], curves[best_rate]
            finals = ", ".join(f"{curve[-1][1]:.3f} at {rate:g}" for rate, curve in curves.items())
            print(
                f"seed {seed}: train.py {ours[seed][-1][1]:.3f} in {ours[seed][-1][0]:.0f} s; plain {finals}",
                flush=True,
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curves.json").write_text(json.dumps({"train.py": ours, "plain": plain}))
    report(ours, plain)


def report(ours: dict[int, Curve], plain: dict[int, Curve]) -> None:
    print("\nshare of the time | train.py | plain recipe")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        losses = [mean(loss_at(curve, share * curve[-1][0]) for curve in curves.values()) for curves in (ours, plain)]
        print(f"{share:17.0%} | {losses[0]:8.3f} | {losses[1]:8.3f}")
    for seed, curve in ours.items():
        plain_final = plain[seed][-1][1]
        share = seconds_to(curve, plain_final) / curve[-1][0]
        print(f"seed {seed}: train.py reaches the plain recipe's {plain_final:.3f} after {share:.2f} of the time")


def loss_at(curve: Curve, seconds: float) -> float:
    """Return the loss at a time, interpolated; that of the first validation before it."""
    return float(np.interp(seconds, *zip(*curve, strict=True)))


def seconds_to(curve: Curve, loss: float) -> float:
    """Return when the curve first falls to `loss`, interpolated; infinity if it never does."""
    for (start, high), (end, low) in itertools.pairwise(curve):
        if low <= loss:
            return start if high <= loss else start + (end - start) * (high - loss) / (high - low)
    return math.inf


def our_curve(folder: Path, seed: int, overrides: list[str]) -> Curve:
    """Train by train.py with frequent validations, and read the curve from metrics.csv."""
    script = CONF.parent / "train.py"
    command = [sys.executable, str(script), "logger=csv", f"seed={seed}", f"output_dir={folder}", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(float(row["time/seconds"]), float(row["val/loss"])) for row in rows if row["val/loss"]]


def plain_curve(
    settings: dict[str, Any],
    corpus: Corpus,
    hardware: Hardware,
    seed: int,
    seconds: float,
    rate: float,
    batch_tokens: int,
) -> Curve:
    """Train transformers' Llama for `seconds`, validated as often as our runs."""
    torch.manual_seed(seed)
    length = settings["train"]["sequence_length"]
    model, _ = transformers_llama(model_config(settings["model"]), hardware)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    autocast = partial(torch.autocast, hardware.accelerator, hardware.matmul_dtype)
    loss_of = torch.compile(lambda inputs, targets: cross_entropy(model(inputs).logits, targets))
    options = {
        "sequence_length": length,
        "batch_size": batch_tokens // length,
        "micro_batch_size": batch_tokens // length,
    }
    steps = iter(train_loader(corpus.train, seed=seed, start_step=0, end_step=1_000_000, **options))

    def take_step(tokens: Tensor, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast(enabled=hardware.precision.endswith("-mixed")):
            loss = loss_of(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def validate(max_tokens: int | None) -> float:
        nats, count = 0.0, 0
        for inputs, targets, *_ in val_batches(
            corpus.val, max_tokens=max_tokens, sequence_length=length, batch_size=16
        ):
            with autocast(enabled=hardware.precision.endswith("-mixed")):
                logits = model(inputs).logits
            nats += torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), reduction="sum"
            ).item()
            count += int((targets != -100).sum())
        return nats / count

    first_batch = next(steps)
    take_step(first_batch, 0.0)  # compiles
    optimizer.state.clear()
    spent, curve, batch = 0.0, [], first_batch
    while spent < seconds:
        start = time.perf_counter()
        take_step(batch, rate * schedule(spent / seconds))
        batch = next(steps)
        spent += time.perf_counter() - start
        if seconds > spent > seconds * (len(curve) + 1) / NUM_VALIDATIONS:
            curve.append((spent, validate(settings["train"]["eval_tokens"])))
    return [*curve, (spent, validate(settings["train"]["val_tokens"]))]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def schedule(share: float) -> float:
    """Return the rate over its peak after a share of the run's seconds: linear warm-up, then half a cosine."""
    if share < WARMUP_SHARE:
        return (share + 1e-3) / WARMUP_SHARE
    progress = (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


if __name__ == "__main__":
    main()
