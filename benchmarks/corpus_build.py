"""Rate, memory and open files of building a corpus, and what they mean for a trillion tokens.

    python benchmarks/corpus_build.py [--megabytes 10 200] [--processes 1 2] [--kill]
    python benchmarks/corpus_build.py --megabytes 40 --encode-batch 3     beside tokenizers' encode_batch

Builds corpora of generated text in files of 1 MB, first the smaller, then the larger, with each number of processes in
turn, each in a process of its own and in a fresh cache. The tokenizer is BPE with 4096 entries, trained on 2 MB.

Prints for each build the text per second of both stages, the largest resident memory of one process, and the most open
files of all processes together; then the hours for a trillion tokens at 4 bytes a token and this rate per process. With
`--kill`, builds the largest corpus once more, killed by SIGKILL in the middle of each stage and started again, and says
which shards were kept and whether the result equals that of the uninterrupted build byte for byte.

`--encode-batch N` prints instead, for each size and number of processes, the rate from text to token shards (both
stages, without training the tokenizer) over that of tokenizers' `encode_batch` alone, which gets the same documents in
memory and as many threads. The two take turns N times; figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BUILD = """
import json, sys, time
from pathlib import Path
from slm.data import local, parts
from slm.data.corpus import prepare, prepare_documents
data, tokenizer, cache, processes = map(json.loads, sys.argv[1:])
local._MIN_PART_BYTES, parts.MIN_PARALLEL_BYTES, parts.MAX_PROCESSES = 4 << 20, 0, processes
start = time.perf_counter()
prepare_documents(data, cache_dir=Path(cache))
documents = time.perf_counter()
corpus = prepare(data, tokenizer, cache_dir=Path(cache))
splits = corpus.train, corpus.val
sizes = sum(split.num_tokens for split in splits), sum(split.num_bytes for split in splits)
print(json.dumps([documents - start, time.perf_counter() - documents, *sizes]))
"""
ENCODE_BATCH = """
import json, sys, time
from pathlib import Path
from tokenizers import Tokenizer
from slm.data.documents import read_file
cache = Path(sys.argv[1])
(tokenizer,) = cache.glob("tokens/*/tokenizer/tokenizer.json")
batches = [texts for file in cache.glob("documents/*/*.parquet") for texts in read_file(file)]
tokenizer = Tokenizer.from_file(str(tokenizer))
start = time.perf_counter()
for texts in batches:
    tokenizer.encode_batch(texts, add_special_tokens=False)
seconds = time.perf_counter() - start
print(json.dumps([seconds, sum(len(text.encode()) for texts in batches for text in texts)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 200])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--encode-batch", type=int, metavar="REPETITIONS")
    options = parser.parse_args()
    if options.encode_batch:
        compare_with_encode_batch(options.megabytes, options.processes, options.encode_batch)
        return
    print(f"{'MB':>6} {'processes':>9} {'documents':>12} {'tokens':>12} {'peak memory':>12} {'open files':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in options.megabytes:
            write_text(Path(folder) / "text", megabytes)
            for processes in options.processes:
                cache = f"{folder}/cache-{megabytes}-{processes}"
                (documents, tokens, num_tokens, num_bytes), memory, files = build(f"{folder}/text", cache, processes)
                rates = num_bytes / 1e6 / documents, num_bytes / 1e6 / tokens
                print(
                    f"{megabytes:>6} {processes:>9} {rates[0]:>7.1f} MB/s {rates[1]:>7.1f} MB/s "
                    f"{memory / 1e6:>9.0f} MB {files:>10}",
                    flush=True,
                )
        if options.kill:
            kill_and_continue(f"{folder}/text", Path(folder) / "killed", Path(cache), processes)
    hours = 4e12 / num_bytes * (documents + tokens) * processes / 3600
    print(f"{num_bytes / num_tokens:.2f} bytes a token in this text")
    print(
        f"a trillion tokens of 4 bytes: {hours:,.0f} hours of one process, {hours / 32:,.0f} with 32 that scale alike"
    )


def compare_with_encode_batch(sizes: list[int], numbers: list[int], repetitions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text, fresh = f"{folder}/text", f"{folder}/fresh"
        for megabytes in sizes:
            write_text(Path(text), megabytes)
            first = f"{folder}/cache-{megabytes}"
            build(text, first, max(numbers))  # trains the tokenizer
            (tokenizer,) = (str(path) for path in Path(first).glob("tokens/*/tokenizer"))
            for processes in numbers:
                rates: list[tuple[float, float]] = []
                for _ in range(repetitions):
                    (documents, tokens, _, num_bytes), *_ = build(text, fresh, processes, tokenizer)
                    shutil.rmtree(fresh)
                    rates.append((num_bytes / (documents + tokens) / 1e6, encode_batch_rate(first, processes) / 1e6))
                ours, theirs = (statistics.median(values) for values in zip(*rates, strict=True))
                ratios = [rate / reference for rate, reference in rates]
                print(
                    f"{megabytes} MB, {processes} processes: text to shards {ours:.1f} MB/s, encode_batch {theirs:.1f} "
                    f"MB/s, ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )


def encode_batch_rate(cache: str, threads: int) -> float:
    """Bytes per second."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", ENCODE_BATCH, cache]
    seconds, num_bytes = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return num_bytes / seconds


def write_text(folder: Path, megabytes: int) -> None:
    """Files of 1 MB, as many as are not there yet, of 20,000 words whose frequencies follow Zipf's law."""
    folder.mkdir(exist_ok=True)
    letters = random.Random(0)
    words = ["".join(letters.choices("etaoinshrdlcumwfgypbvk", k=letters.randint(2, 10))) for _ in range(20_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for number in range(megabytes):
        file = folder / f"{number:05d}.txt"
        if not file.exists():
            rng = random.Random(number)
            documents = (" ".join(rng.choices(words, cum_weights=weights, k=500)) for _ in range(1_000_000 // 3500))
            file.write_text("\n\n".join(documents))


def start_build(text: str, cache: str, processes: int, tokenizer_path: str | None = None) -> subprocess.Popen[str]:
    """Without `tokenizer_path`, a tokenizer is trained."""
    data = {"name": "text", "source": "local", "paths": text, "val_paths": None, "text_column": "text"}
    data |= {"max_document_bytes": 10_000, "val_fraction": 0.01}
    tokenizer: dict[str, object] = {"kind": "bpe", "vocab_size": 4096, "train_bytes": 2_000_000}
    if tokenizer_path:
        tokenizer = {"kind": "file", "path": tokenizer_path, "revision": None}
    arguments = [json.dumps(value) for value in (data, tokenizer, cache, processes)]
    command = [sys.executable, "-c", BUILD, *arguments]
    # A build by one process encodes in threads: as many as processes were asked for.
    environment = os.environ | {"RAYON_NUM_THREADS": str(processes)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def build(
    text: str, cache: str, processes: int, tokenizer_path: str | None = None
) -> tuple[tuple[float, float, int, int], int, int]:
    """(seconds of both stages, tokens, bytes), peak resident bytes of one process, and open files of all."""
    process = start_build(text, cache, processes, tokenizer_path)
    memory = files = 0
    while process.poll() is None:
        with suppress(OSError):  # a process that has just ended
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            family = [Path(f"/proc/{pid}") for pid in (process.pid, *children)]
            memory = max(memory, *(int((one / "statm").read_text().split()[1]) * PAGE_BYTES for one in family))
            files = max(files, sum(len(list((one / "fd").iterdir())) for one in family))
        time.sleep(0.05)
    answer, _ = process.communicate()
    return json.loads(answer), memory, files


def kill_and_continue(text: str, killed: Path, uninterrupted: Path, processes: int) -> None:
    for stage, suffix in (("documents", "parquet"), ("tokens", "bin")):
        num_files = len(list(uninterrupted.glob(f"{stage}/*/*.{suffix}")))
        process = start_build(text, str(killed), processes)
        while len(list(killed.glob(f"{stage}/*.partial/parts/{stage}-*.json"))) < num_files / 2:
            if process.poll() is not None:
                print(f"the {stage} were complete before they could be killed: give more --megabytes")
                return
            time.sleep(0.005)
        process.kill()
        process.wait()
    time.sleep(1)  # for workers to notice
    restarted = time.time()
    start_build(text, str(killed), processes).communicate()
    shards = list(killed.glob("tokens/*/*.bin"))
    kept = sum(shard.stat().st_mtime < restarted for shard in shards)
    is_equal = hash_files(killed) == hash_files(uninterrupted)
    print(
        f"killed in the middle of both stages: {kept} of {len(shards)} token shards kept, {len(shards) - kept} built "
        f"after the last start; files equal byte for byte: {is_equal}"
    )


def hash_files(cache: Path) -> dict[str, str]:
    files = [path for path in cache.rglob("*") if path.is_file()]
    return {str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


if __name__ == "__main__":
    main()
