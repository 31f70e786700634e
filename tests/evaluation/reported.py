"""Entries of results.json that the tests of the report share."""

import math
from typing import Any

import numpy as np

MOBILELLM = {
    "125M": (124_635_456, 11.961319, 23.715576, 701.737984, 85.886318, 30, 576, 106_203_456),
    "350M": (345_355_200, 8.976614, 21.692929, 1181.821440, 74.618786, 32, 960, 314_635_200),
    "600M": (603_188_352, 7.984185, 17.527269, 1739.324416, 123.672600, 40, 1152, 566_324_352),
    "1B": (1_005_461_760, 7.171037, 13.309350, 2559.193088, 174.464070, 54, 1280, 964_501_760),
}
"""FACTS: parameters, perplexity, tokens/s, MB, seconds, layers, width, parameters without embeddings."""
TOKENS, BYTES = 335_688, 1_290_590
SEGMENTATION = "5" * 16
ON_CPU = {"cache": True, "compiled": True, "dtype": "float32", "device": "cpu", "device_name": "Zen (2 threads)"}


def score(loss: float | None, *, data: str = "wikitext2", bits: float | None = None, **other: Any) -> dict[str, Any]:
    """One perplexity result; bits per byte follow from the loss and the counts."""
    tokens = other.get("tokens", TOKENS)
    ratio = tokens / BYTES / math.log(2)
    figures = {"loss": loss, "perplexity": None, "bits_per_byte": bits, "se_loss": None, "se_bits_per_byte": None}
    figures |= {"word_perplexity": None}
    if loss is not None:
        figures |= {"perplexity": math.exp(loss), "bits_per_byte": loss * ratio if bits is None else bits}
        figures |= {"se_loss": 0.012, "se_bits_per_byte": 0.012 * ratio}
        figures |= {"word_perplexity": math.exp(loss * tokens / 241_859)}
    text = {"data": data, "data_fingerprint": "f" * 16, "segmentation": f"{tokens:016}", "notes": []}
    protocol = {"protocol": "sliding", "max_length": 1024, "stride": 512, "windows": 655}
    counts = {"tokens": TOKENS, "bytes": BYTES, "words": 241_859, "se_method": "block bootstrap over 62 documents"}
    return text | protocol | figures | counts | other


def scored_blocks(nats: np.ndarray, num_bytes: np.ndarray, tokens: np.ndarray, **other: Any) -> dict[str, Any]:
    """One perplexity result with the blocks that its loss is the sum of; errors by the delta method of one ratio."""
    loss, K = nats.sum() / tokens.sum(), len(nats)
    error = float(np.sqrt(K / (K - 1) * ((nats - loss * tokens) ** 2).sum()) / tokens.sum())
    blocks = {"nats": nats.tolist(), "tokens": tokens.tolist(), "bytes": num_bytes.tolist()}
    counts = {"tokens": int(tokens.sum()), "bytes": int(num_bytes.sum()), "blocks": blocks}
    bits, ratio = float(nats.sum() / num_bytes.sum() / math.log(2)), float(tokens.sum() / num_bytes.sum() / math.log(2))
    made = score(float(loss), bits=bits, se_loss=error, se_bits_per_byte=error * ratio, **counts)
    return made | {"segmentation": SEGMENTATION} | other


def correlated_blocks(rng: np.random.Generator, checkpoints: int, K: int = 62) -> tuple[np.ndarray, ...]:
    """(nats (checkpoints, K), bytes (K,), tokens (K,)): documents are hard or easy for all checkpoints alike."""
    num_bytes = rng.integers(8_000, 32_000, K)
    hard = rng.normal(0, 0.06, K)
    per_byte = 0.55 + 0.02 * np.arange(checkpoints)[:, None] + hard + rng.normal(0, 0.004, (checkpoints, K))
    return per_byte * num_bytes, num_bytes, num_bytes // 4


def speed(decode: float, peak_mb: float = 700.0, **other: Any) -> dict[str, Any]:
    """One measurement of speed."""
    rates = {"prefill_tokens_per_second": decode * 30, "prefill_spread": [decode * 29, decode * 31]}
    rates |= {"decode_tokens_per_second": decode, "decode_spread": [decode * 0.98, decode * 1.02]}
    how = {"cache": False, "compiled": False, "dtype": "float16", "device": "cuda", "device_name": "Tesla T4"}
    how |= {"threads": 2, "prompt_tokens": 512, "new_tokens": 128, "repetitions": 5, "without_sharing": None}
    sizes = {"peak_memory_bytes": round(peak_mb * 1e6), "model_bytes": 249_270_912, "state_bytes": 98_304}
    sizes |= {"kv_bytes_per_token": 23_040, "kv_cache_bytes": 47_185_920}
    return rates | how | sizes | other


def entry(name: str, params: int, **other: Any) -> dict[str, Any]:
    """One checkpoint without measurements."""
    shape = {"vocab_size": 32000, "hidden_size": 576, "num_layers": 30, "layer_sharing": "none", "num_repeats": 1}
    model = {"checkpoint": f"checkpoints/{name}", "name": name, "kind": "hf", "revision": None, "family": None}
    model |= {"params_total": params, "params_non_embedding": int(params * 0.9), "shape": shape}
    model |= {"fingerprint": "0123456789abcdef", "stored_dtype": "float16"}
    how = {"schema": 1, "status": "completed", "dtype": "float32", "autocast": None, "device": "cpu", "notes": []}
    how |= {"load_seconds": 1.25, "wall_seconds": 60.5, "evaluated_at": "2026-11-22T06:00:00Z"}
    return model | how | {"versions": {"torch": "2.13.0", "slm": "0.1.0"}} | other


def published() -> list[dict[str, Any]]:
    """The four rows of the study, as if they had been measured here."""
    made = []
    for size, (params, perplexity, decode, peak, seconds, layers, width, inner) in MOBILELLM.items():
        shape = {"vocab_size": 32000, "hidden_size": width, "num_layers": layers}
        facts = {"checkpoint": f"facebook/MobileLLM-{size}", "shape": shape, "params_non_embedding": inner}
        facts |= {"wall_seconds": seconds, "speed": speed(decode, peak)}
        facts["perplexity_results"] = [score(math.log(perplexity), perplexity=perplexity)]
        made.append(entry(f"MobileLLM-{size}", params, **facts))
    return made


def task(value: float, n: int = 1000, **other: Any) -> dict[str, Any]:
    """One task's accuracy with its binomial error."""
    made = {"metric": "acc_norm", "value": value, "se": math.sqrt(value * (1 - value) / n), "n": n, "num_fewshot": 0}
    return made | other


def tiny() -> list[dict[str, Any]]:
    """Five runs of ours with tasks; one with a failed task, one block-shared, one whose losses are null."""
    made = []
    for place, (params, loss) in enumerate(((6e6, 4.1), (12e6, 3.72), (24e6, 3.43), (24e6, 3.41), (48e6, None))):
        shared = place == 3
        name = f"deep|thin {place}/größe*" if not shared else "multirun/2026-11-22/a-very-long-name-of-a-shared-run"
        shape = {"vocab_size": 4096, "hidden_size": 128, "num_layers": 8, "num_repeats": 2 if shared else 1}
        apart = {"prefill_tokens_per_second": 9000.0, "decode_tokens_per_second": 480.0} if shared else None
        tasks = {
            "arc_easy": task(0.30 + 0.02 * place, 2376),
            "piqa": task(0.55 + 0.01 * place, 1838, metric="acc"),
            "boolq": {"error": "boolq needs data that is not here: set task_files.boolq"} if place == 1 else task(0.5),
        }
        shape |= {"layer_sharing": "immediate" if shared else "none"}
        facts = {"kind": "run", "family": "deep thin" + " shared" * shared, "shape": shape, "train_tokens": 20_000_000}
        facts |= {"tasks": tasks if place < 4 else {"piqa": {"error": "boom"}}}
        facts |= {"speed": speed(500.0 - 60 * place, **ON_CPU, without_sharing=apart)}
        other = {"data": "pydocs", "protocol": "non_overlapping", "max_length": 256, "stride": 256}
        facts["perplexity_results"] = [score(loss, tokens=400_000), score(loss and loss - 0.2, **other)]
        notes = ["Evaluated under bfloat16 autocast, as it was trained."] if place == 0 else []
        made.append(entry(name, int(params), notes=notes, **facts))
    return made
