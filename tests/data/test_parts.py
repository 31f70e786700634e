"""A corpus is built in parts, by several processes, and a killed build is continued."""

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from slm.data import local, parts, prepare, train_loader
from slm.data.cache import cached
from slm.data.documents import write_documents
from slm.data.parts import Part, build_parts
from slm.data.stream import MAX_OPEN_SHARDS, TokenStream, split_facts
from tests.seeds import seeded

IN_PARTS = """from slm.data import local, parts
parts.MIN_PARALLEL_BYTES, local._MIN_PART_BYTES, parts.num_cores = 0, 1, lambda: 2"""


@pytest.fixture
def data(config, tmp_path):
    """Twenty files of about 0.6 MB."""
    rng = random.Random(seeded())
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(2000)]
    for number in range(20):
        (tmp_path / f"file-{number:02d}.txt").write_text(" ".join(rng.choices(words, k=100_000)))
    return config("data", "local", paths=str(tmp_path / "file-*.txt"), max_document_bytes=5000)


def files_of(cache):
    return {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_a_killed_build_builds_only_what_is_missing_and_ends_equal(config, data, tmp_path, preparing, monkeypatch):
    tokenizer = config("tokenizer", "bpe", vocab_size=300, train_bytes=100_000)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = dict[str, int]()
    for stage in ("documents", "tokens"):
        process = preparing(data, tokenizer, killed, before=IN_PARTS)
        while len(records := list(killed.glob(f"{stage}/*.partial/parts/{stage}-*.json"))) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not list(killed.glob(f"{stage}/*/manifest.json"))
        done |= {str(record): record.stat().st_mtime_ns for record in records}
    process = preparing(data, tokenizer, killed, before=IN_PARTS)
    while process.poll() is None:
        for record in list(done):
            if os.path.exists(record):
                assert os.stat(record).st_mtime_ns == done[record]  # not built again
        time.sleep(0.05)
    assert process.returncode == 0, process.communicate()
    monkeypatch.setattr(local, "_MIN_PART_BYTES", 1)
    prepare(data, tokenizer, cache_dir=whole)  # in this process, without a kill
    assert files_of(killed) == files_of(whole)


def test_processes_end_with_the_build_and_their_error_is_that_of_the_reader(data, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MIN_PARALLEL_BYTES", 0)
    monkeypatch.setattr(parts, "num_cores", lambda: 2)
    monkeypatch.setattr(local, "_MIN_PART_BYTES", 1)
    started = []
    popen = parts.subprocess.Popen
    monkeypatch.setattr(parts.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    (tmp_path / "file-05.txt").write_bytes(b"\xff\xfe\xfa" * 1000)
    with pytest.raises(ValueError, match=r"^data\.paths: .*file-05\.txt"):
        write_documents(tmp_path, data)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def die(folder, number, advance):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_one_sentence_and_keeps_what_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "num_cores", lambda: 2)
    with pytest.raises(OSError, match=r"exited with status -9, probably for lack of memory"):
        build_parts(tmp_path, "x", die, [Part((), None)] * 3, task="dying")


def test_memory_and_descriptors_do_not_grow_with_the_number_of_shards(tmp_path):
    """A stream of 5 TB of text in 12,500 files, which are sparse."""
    shards = [{"file": f"train-{i:05d}-000.bin", "tokens": 100_000_000} for i in range(12_500)]
    for shard in shards:
        with open(tmp_path / shard["file"], "wb") as file:
            file.truncate(2 * shard["tokens"])
    last = np.memmap(tmp_path / shards[-1]["file"], dtype="<u2", mode="r+")
    last[-5:] = [1, 2, 3, 4, 5]
    del last
    facts = split_facts(shards, 32_000, {"documents": 10**9, "bytes": 5 * 10**12})
    files = {shard["file"]: {"bytes": 200_000_000, "sha256": ""} for shard in shards}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"train": facts}, "files": files}))
    start = time.process_time()
    manifest = cached(tmp_path, lambda partial: pytest.fail("built again"), what="5 TB")
    stream = TokenStream(tmp_path, manifest["splits"]["train"])
    assert stream.read(stream.num_tokens - 3, stream.num_tokens).tolist() == [3, 4, 5]
    last_step = stream.num_windows(2048) // 8 - 1
    steps = {"start_step": last_step, "end_step": last_step + 1, "seed": 1}
    (batch,) = train_loader(stream, sequence_length=2048, batch_size=8, micro_batch_size=8, **steps)
    assert batch.shape == (8, 2049)
    assert time.process_time() - start < 1
    for i in range(0, 12_500, 25):
        stream.read(i * 100_000_000, i * 100_000_000 + 10)
    descriptors = [descriptor for descriptor in Path("/proc/self/fd").iterdir() if descriptor.exists()]
    assert 0 < sum(descriptor.readlink().parent == tmp_path for descriptor in descriptors) <= MAX_OPEN_SHARDS
