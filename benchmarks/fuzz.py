"""Random damage to the commands' input: `python benchmarks/fuzz.py [--only corpus] [--count 20] [--seed 0]`.

Each case is a valid input with one to three mutations, read in this process as the commands read it. The input must be
either read or refused in one sentence (see `slm.runtime.command_line`), within 20 seconds. A case that fails is printed
with its number, and the exit status is 1; `--case N` runs one case alone. A target is an entry of `TARGETS`: how its
input is written, mutated and read.
"""

import argparse
import contextlib
import csv
import faulthandler
import gzip
import io
import json
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import torch
from omegaconf import OmegaConf
from pyarrow import parquet
from tokenizers import decoders, models, normalizers, pre_tokenizers

from slm.checkpoints import export_model, load
from slm.data import load_tokenizer, prepare
from slm.data.questions import read_records
from slm.data.readers import SUFFIXES
from slm.data.vocabulary import plan_tokenizer
from slm.evaluation.texts import read_text
from slm.model import Decoder, ModelConfig
from slm.runtime.command_line import MISTAKES, one_sentence
from slm.scaling import Settings, analyse, read_table

CONF = Path(__file__).parents[1] / "conf"
MOST_SECONDS = 20
MOST_CHARACTERS = 1000  # longest message that counts as one sentence
WORDS = ("river", "stone", "lamp", "quiet", "harbour", "winter", "seven", "copper", "bread", "letter", "window")
Random = random.Random
Mutation = Callable[[Random, Path], str]
"""Damages one thing in a folder and returns a description; may raise if an earlier mutation left nothing to damage."""


@dataclass(frozen=True)
class Target:
    """A kind of input: `make` writes a valid one into a folder, `read` reads it as the commands do."""

    make: Callable[[Path], None]
    mutations: Sequence[Mutation]
    read: Callable[[Random, Path], None]


class TooSlowError(BaseException):
    """Raised by the alarm; not an `Exception`, so no reader catches it."""


# Mutations of any file


def any_file(rng: Random, folder: Path) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def spoiled(content: bytes, rng: Random) -> tuple[bytes, str]:
    """The content with bytes flipped, cut out, inserted or overwritten, or lines repeated; and the kind of change."""
    at, length = rng.randrange(len(content) + 1), rng.choice((1, 3, 17, 400))
    kind = rng.choice(("flip", "cut out", "cut off", "insert", "overwrite", "repeat lines", "empty"))
    if kind == "flip":
        flipped = bytearray(content)
        for _ in range(min(length, len(content))):
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(flipped), kind
    if kind == "repeat lines":
        lines = content.splitlines(keepends=True) or [b"\n"]
        return b"".join([*lines[: at % len(lines)], *rng.choices(lines, k=length), *lines[at % len(lines) :]]), kind
    special = (
        b"\0" * length,
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\n\n",
        b"[" * length,
        b'"',
        rng.randbytes(length),
    )
    changed = {
        "cut out": content[:at] + content[at + length :],
        "cut off": content[:at],
        "insert": content[:at] + rng.choice(special) + content[at:],
        "overwrite": content[:at] + rng.choice(special) + content[at + length :],
        "empty": b"",
    }
    return changed[kind], kind


def change_bytes(rng: Random, folder: Path) -> str:
    path = any_file(rng, folder)
    content, kind = spoiled(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"{path.name}: {kind}"


def change_unpacked_bytes(rng: Random, folder: Path) -> str:
    """Like `change_bytes`, but inside an intact gzip file."""
    path = rng.choice([file for file in sorted(folder.rglob("*")) if file.name.lower().endswith(".gz")])
    content, kind = spoiled(gzip.decompress(path.read_bytes()), rng)
    path.write_bytes(gzip.compress(content))
    return f"{path.name}: {kind} inside"


def change_suffix(rng: Random, folder: Path) -> str:
    path = any_file(rng, folder)
    suffix = rng.choice([*SUFFIXES, *map(str.upper, SUFFIXES), ".json", ".csv", ".zip", ".gz", ""])
    path.rename(path.with_name(path.name.split(".")[0] + suffix))
    return f"{path.name}: renamed to {suffix!r}"


# The corpus folder: text, JSON lines, Parquet


def texts(rng: Random, count: int) -> list[str]:
    return ["\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(3)) for _ in range(count)]


def make_corpus(folder: Path) -> None:
    rng = Random(0)
    (folder / "sub").mkdir(parents=True)
    (folder / "book.txt").write_text("\n\n".join(texts(rng, 60)))
    for name in ("rows.jsonl", "packed.ndjson.gz"):
        lines = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts(rng, 40)))
        (folder / name).write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
    columns = pa.table({"text": texts(rng, 40), "id": range(40)})
    parquet.write_table(columns, folder / "sub" / "columns.parquet")
    plain = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "row_group_size": 7}
    parquet.write_table(columns, folder / "sub" / "plain.parquet", **plain)
    quiz = ({"query": text, "choices": [text[:9], "no"], "gold": i % 2} for i, text in enumerate(texts(rng, 20)))
    (folder / "quiz.jsonl").write_text("".join(json.dumps({**row, "text": row["query"]}) + "\n" for row in quiz))


OTHER_VALUES: list[Any] = [
    *(None, "", " ", 3, 0.5, True, [], ["a", "b"], {"a": "b"}, "\ud800", "\0", "\ufeffa", 10**30, float("nan"), [[[]]])
]
OTHER_TYPES: list[pa.DataType] = [
    *(pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.large_binary()),
    *(pa.binary_view(), pa.binary(4), pa.null(), pa.int32(), pa.float16(), pa.bool_(), pa.date32(), pa.timestamp("us")),
    *(pa.list_(pa.string()), pa.struct([("a", pa.string())]), pa.map_(pa.string(), pa.string()), pa.decimal128(9, 2)),
]


def change_rows(rng: Random, folder: Path) -> str:
    """Other values, other keys or other rows in JSON lines; another type of the column in Parquet."""
    path = any_file(rng, folder)
    if path.name.lower().endswith(".parquet"):
        return change_column(rng, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kind, value = rng.choice(("value", "no key", "other key", "row", "every value")), rng.choice(OTHER_VALUES)
    for place in range(len(rows)) if kind == "every value" else rng.choices(range(len(rows)), k=rng.choice((1, 9))):
        row = dict(rows[place]) if isinstance(rows[place], dict) else {}
        key = rng.choice(list(row) or ["text"]) if kind != "every value" else "text"
        left = {name: held for name, held in row.items() if name != key}
        changed = {"no key": left, "other key": left | {"words": row.get(key)}, "row": value}
        rows[place] = changed.get(kind, row | {key: value})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{path.name}: {kind}, {value!r}"


def change_column(rng: Random, path: Path) -> str:
    kind, name = rng.choice(OTHER_TYPES), rng.choice(("text", "text", "text", "words"))
    held = [str(value) for value in parquet.read_table(path).column(0).to_pylist()]
    empty = pa.nulls(len(held), kind)
    try:
        column = pa.array(held).cast(kind)
    except pa.ArrowException:
        some = {"list": ["a"], "struct": {"a": "b"}, "map": [("a", "b")]}.get(str(kind).split("<")[0])
        column = empty if some is None else pa.array([some] * len(held), kind)
    if rng.random() < 0.2:
        column = pa.concat_arrays([column, empty])
    parquet.write_table(pa.table({name: column}), path)
    return f"{path.name}: column {name!r} of {kind}"


def read_corpus(rng: Random, folder: Path) -> None:
    """Read like train.py, evaluate.py and `task_files`; all are tried, and the longest refusal is raised."""
    options: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "local.yaml"))
    files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    options["paths"] = rng.choice((str(folder), f"{folder}/**/*.*", files, files))
    options["val_paths"] = rng.choice((None, None, files[0], files[-1]))
    tokenizer = {"name": "bytes", "kind": "bytes"}
    ways: list[Callable[[], object]] = [
        lambda: prepare(options, tokenizer, cache_dir=folder.parent / "cache"),
        lambda: read_text(options, cache_dir=folder.parent / "cache"),
        lambda: read_text({**options, "paths": files[0], "val_paths": None}, cache_dir=folder.parent / "cache"),
        lambda: read_records("quiz", next(file for file in files if "quiz" in file)),
    ]
    try_all(ways)


def try_all(ways: Sequence[Callable[[], object]]) -> None:
    """Try all, then raise the longest refusal, if any."""
    refused: list[Exception] = []
    for way in ways:
        try:
            way()
        except MISTAKES as error:
            refused.append(error)
    if refused:
        raise max(refused, key=lambda error: len(one_sentence(error)))


# The table of results: CSV and JSON lines


def make_table(folder: Path) -> None:
    rng = Random(0)
    folder.mkdir(parents=True)
    for name in ("runs.csv", "runs.jsonl", "runs.tsv"):
        rows = [
            {
                "run_id": f"{family}-{N}-{seed}",
                "family": family,
                "params_total": N,
                "tokens": 20 * N,
                "flops": 120 * N**2,
                "seed": seed,
                "status": "completed",
                "loss": round((1.7 + 400 * factor * N**-0.34) * rng.gauss(1, 0.002), 5),
            }
            for family, factor in (("deep", 1.0), ("wide", 1.1))
            for N in (10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8)
            for seed in (0, 1)
        ]
        with (folder / name).open("w", newline="") as file:
            if name.endswith(".jsonl"):
                file.write("".join(json.dumps(row) + "\n" for row in rows))
            else:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
                writer.writeheader()
                writer.writerows(rows)


CELLS = [
    *("", "nan", "inf", "-inf", "null", "0", "-1", "1e400", "1e-320", "1e9", "1,234", "12M", "7B", "50%", "true", "[]"),
    *(
        "completed",
        "crashed",
        "diverged",
        "running",
        "loss",
        "2024-01-01",
        "\ufeff3",
        "=A1",
        "3.1.2",
        "９",
        "NA",
        " 2.5 ",
    ),
]
NAMES = [
    "",
    " ",
    "loss",
    "family",
    "params_total",
    "N",
    "D",
    "perplexity",
    "val_loss",
    "tokens (B)",
    "lr",
    "step",
    "Loss",
]


def change_cells(rng: Random, folder: Path) -> str:
    """Other cells, names of columns, columns or rows of a delimited table, or of JSON lines by their text."""
    path = any_file(rng, folder)
    if path.name.endswith(".jsonl"):
        return change_rows(rng, folder)
    mark = "\t" if path.name.endswith(".tsv") else ","
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter=mark))
    kind, at = rng.choice(("cell", "cells", "column", "name", "drop", "shuffle", "short")), rng.randrange(len(rows[0]))
    value = rng.choice(CELLS)
    if kind in ("cell", "cells"):
        for row in rng.choices(rows[1:], k=1 if kind == "cell" else 7):
            row[at] = value
    elif kind == "column":
        scale = rng.choice((0, -1, 1e-9, 1e-6, 1e6, 1e9, 1e300))
        rows[1:] = [[*row[:at], scaled(row[at], scale, value), *row[at + 1 :]] for row in rows[1:]]
    elif kind == "name":
        rows[0][at] = rng.choice(NAMES)
    elif kind == "drop":
        rows = [[*row[:at], *row[at + 1 :]] for row in rows]
    elif kind == "shuffle":
        rows = rng.sample(rows, rng.randrange(1, len(rows)))
    else:
        rows[rng.randrange(len(rows))] = rows[-1][:at]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    return f"{path.name}: {kind} {at}, {value!r}"


def scaled(cell: str, scale: float, otherwise: str) -> str:
    try:
        return repr(float(cell) * scale)
    except ValueError:
        return otherwise


def read_runs(rng: Random, folder: Path) -> None:
    """Read and analyse like sweep.py runs=TABLE."""
    table = read_table(any_file(rng, folder))
    analyse(table, Settings(laws=("power", "power_floor"), bootstrap=0, calibration=0), verdict_only=True)


# The exported folder, and the tokenizer.json in it

TEXT = "The  quick\nbrown fox, 語 🙂 e\u0301 <|endoftext|>"
JSON_VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 7.5, -0.0, 1e300, 2**31 - 1, 2**62, 10**30, float("nan"), float("inf")),
    *("", "a", "48", "none", "\ud800", [], [1], [[]], {}, {"a": 1}, {"type": "BPE"}),
]
SHAPE = {"vocab_size": 260, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}


def make_exports(folder: Path) -> None:
    """Write four of our exports, and one folder as on the hub: a plain config, safetensors and a pickle."""
    changes: list[dict[str, Any]] = [
        {"layer_sharing": "immediate", "num_repeats": 2},
        {"tie_embeddings": False, "qk_norm": "learned"},
        {"attention_bias": True, "mlp_bias": True},
        {},
    ]
    for number, change in enumerate(changes):
        torch.manual_seed(number)
        decoder = Decoder(ModelConfig(**{**SHAPE, "intermediate_size": 64, **change}))
        tokenizer = plan_tokenizer({"kind": "bytes"}).make(lambda: iter([]))
        export_model(folder / f"own-{number}", decoder.config, decoder.state_dict(), tokenizer)
    shutil.copytree(folder / "own-3", folder / "hub")
    config = json.loads((folder / "hub" / "config.json").read_text())
    config.pop("slm")
    config |= {"model_type": "mobilellm", "share_embedding": True, "layer_sharing": False, "torch_dtype": "float32"}
    config |= {"rope_scaling": None, "partial_rotary_factor": 1.0, "sliding_window": None, "quantization_config": None}
    (folder / "hub" / "config.json").write_text(json.dumps(config))
    torch.save(decoder.state_dict(), folder / "hub" / "pytorch_model.bin")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed_json(rng: Random, value: Any) -> str:
    """Remove, replace, rename or move one place of a JSON value; returns a description."""
    found = list(places(value))
    if len(found) > 300:  # else nearly all changes would hit the vocabulary
        found = [place for place in found if len(place) < 4 or rng.random() < 0.02]
    *parents, key = rng.choice(found)
    for parent in parents:
        value = value[parent]
    what = rng.choice(("remove", "value", "value", "number", "rename", "copy"))
    if what == "remove":
        del value[key]
    elif what == "rename" and isinstance(value, dict):
        value[f"{key}{rng.choice('x _')}"] = value.pop(key)
    elif what == "number" and type(value[key]) in (int, float):
        value[key] = rng.choice((-value[key], value[key] + 1, value[key] * 2, str(value[key]), float(value[key])))
    else:
        donors = list(value.values()) if isinstance(value, dict) else value
        value[key] = rng.choice(donors if what == "copy" else JSON_VALUES)
    return f"{what} {[*parents, key]}"


def change_json(rng: Random, folder: Path) -> str:
    path = rng.choice(sorted(folder.rglob("*.json")))
    value = json.loads(path.read_text())
    said = [changed_json(rng, value) for _ in range(rng.choice((1, 1, 2, 5)))]
    path.write_text(json.dumps(value))
    return f"{path.parent.name}/{path.name}: {', '.join(said)}"


def change_header(rng: Random, folder: Path) -> str:
    """Change the header of a safetensors file: names, types, shapes, offsets."""
    path = rng.choice(sorted(folder.rglob("*.safetensors")))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.5:
        said = changed_json(rng, header)
    else:
        name = rng.choice([key for key in header if key != "__metadata__"])
        others = ("lm_head.weight", "embed_tokens.weight", f"model.{name}", "", "\n", "x" * 3000, f"_orig_mod.{name}")
        other = rng.choice(others)
        header[other] = header.pop(name)
        said = f"{name} called {other[:40]!r}"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return f"{path.parent.name}/{path.name}: {said}"


def change_pickle(rng: Random, folder: Path) -> str:
    """Replace a tensor by one of another type or shape, or by None, under its own or another name."""
    path = folder / "hub" / "pytorch_model.bin"
    (path.parent / "model.safetensors").unlink(missing_ok=True)
    state = torch.load(path, weights_only=True)
    name, number = rng.choice(list(state)), rng.randrange(10)
    t = state[name]
    others: list[Any] = [t.half(), t.flatten(), t.to(torch.int64), t.to_sparse(), t.to(torch.complex64), t[:0]]
    others += [torch.tensor(1.0), None, t * torch.nan, t.to("meta")]
    state[rng.choice((name, "lm_head.weight", 3, b"x", ""))] = others[number]
    torch.save({"state_dict": state} if rng.random() < 0.2 else state, path)
    return f"pickle: {name} replaced by number {number}"


def change_files(rng: Random, folder: Path) -> str:
    """Remove a file, or replace it by a folder, a link to itself, or another file."""
    one, two = any_file(rng, folder), any_file(rng, folder)
    kind = rng.choice(("missing", "folder", "link", "other"))
    content = two.read_bytes()
    one.unlink()
    if kind == "folder":
        one.mkdir()
    elif kind == "link":
        one.symlink_to(one)
    elif kind == "other":
        one.write_bytes(content)
    return f"{one.parent.name}/{one.name}: {kind}"


def use_export(folder: Path) -> None:
    """Load like evaluate.py, encode a text, compute logits."""
    decoder, tokenizer, _ = load(folder)
    ids = tokenizer.encode(TEXT)
    tokenizer.text_bytes(TEXT, ids)
    if ids:
        decoder(torch.tensor([ids[: min(16, decoder.config.max_position_embeddings)]]))


def make_tokenizers(folder: Path) -> None:
    """Write byte-level BPE as train.py trains it, bytes, and one of each kind of the tokenizers library."""
    for kind in ({"kind": "bpe", "vocab_size": 300, "train_bytes": None}, {"kind": "bytes"}):
        made = plan_tokenizer(kind).make(lambda: iter([["the cat sat on the mat 語 " * 20]]))
        made.save(folder / str(kind["kind"]))
    space = "\u2581"
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        space,
        "a",
        "t",
        "h",
        f"{space}a",
        "th",
    ]
    vocabulary, merges = {piece: i for i, piece in enumerate(pieces)}, [(space, "a"), ("t", "h")]
    llama = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    llama.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])
    unigram = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), (space, -1.0), ("a", -2.0), ("the", -2.5)], unk_id=0)
    )
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = tokenizers.Tokenizer(models.WordPiece({"<unk>": 0, "the": 1, "a": 2, "##s": 3}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    for name, inner in {"llama": llama, "unigram": unigram, "wordpiece": words}.items():
        inner.add_special_tokens(["<unk>", "<s>", "</s>"])
        (folder / name).mkdir(parents=True)
        inner.save(str(folder / name / "tokenizer.json"))
        (folder / name / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')


def use_tokenizer(folder: Path) -> None:
    """Use like a run: load, encode and decode, count bytes, save, and load the saved one."""
    made = load_tokenizer(folder)
    for text in (TEXT, "", "a", " the\n\n"):
        ids = made.encode(text)
        assert made.encode_batch([text]) == [ids]
        assert max(ids, default=0) < made.vocab_size
        assert made.text_bytes(text, ids)[0].sum() == (len(text.encode()) if ids else 0)
        made.decode([*ids, made.eos_id])
    made.save(folder / "saved")
    again = load_tokenizer(folder / "saved")
    assert (again.fingerprint, again.eos_id, again.adds_bos) == (made.fingerprint, made.eos_id, made.adds_bos)


def kinds_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


TARGETS = {
    "folder": Target(
        make_exports,
        (change_json, change_json, change_bytes, change_header, change_header, change_pickle, change_files),
        lambda rng, folder: try_all([partial(use_export, one) for one in kinds_of(folder)]),
    ),
    "tokenizer": Target(
        make_tokenizers,
        (change_json, change_json, change_json, change_bytes),
        lambda rng, folder: try_all([partial(use_tokenizer, one) for one in kinds_of(folder)]),
    ),
    "table": Target(make_table, (change_bytes, change_cells, change_cells, change_cells, change_suffix), read_runs),
    "corpus": Target(
        make_corpus, (change_bytes, change_bytes, change_unpacked_bytes, change_suffix, change_rows), read_corpus
    ),
}


# Running cases


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TooSlowError(f"over {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def mutate(rng: Random, target: Target, folder: Path) -> str:
    try:
        return rng.choice(target.mutations)(rng, folder)
    except Exception:
        return change_bytes(rng, folder)


def run_case(target: Target, name: str, seed: int, number: int, sound: Path, home: Path) -> tuple[str, str, list[str]]:
    """Outcome of a case (read, refused or the name of the failure), its message or traceback, and its mutations."""
    rng, folder = Random(f"{seed} {name} {number}"), home / "case" / "input"
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(sound, folder)
    done = [mutate(rng, target, folder) for _ in range(rng.choice((1, 1, 2, 3)))]
    try:
        with alarm(MOST_SECONDS), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(rng, folder)
    except MISTAKES as error:
        said = one_sentence(error)
        good = said and "\n" not in said and len(said) < MOST_CHARACTERS
        return "refused" if good else "no sentence", said, done
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        return type(error).__name__, traceback.format_exc(), done
    return "read", "", done


def run_target(name: str, asked: argparse.Namespace) -> int:
    """Run the cases of a target; returns the number that failed."""
    outcomes, slowest, start = Counter[str](), 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        TARGETS[name].make(home / "sound")
        for number in range(asked.count) if asked.case is None else [asked.case]:
            begin = time.perf_counter()
            outcome, said, done = run_case(TARGETS[name], name, asked.seed, number, home / "sound", home)
            slowest = max(slowest, time.perf_counter() - begin)
            outcomes[outcome] += 1
            wrong = outcome not in ("read", "refused")
            if wrong or asked.verbose or asked.case is not None:
                print(f"{name} {number} ({'; '.join(done)}): {outcome} {said.replace(directory, '')}", flush=True)
    failed = sum(outcomes.values()) - outcomes["read"] - outcomes["refused"]
    took = time.perf_counter() - start
    print(
        f"{name:10s} {sum(outcomes.values()):,} cases in {took:.0f} s: {outcomes['read']:,} read, "
        f"{outcomes['refused']:,} refused in a sentence, {failed:,} went wrong; the slowest took {slowest:.1f} s"
    )
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TARGETS, nargs="+", default=list(TARGETS), help="targets; all by default")
    parser.add_argument("--count", type=int, default=20, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="the number of one case, to run it alone")
    parser.add_argument("--verbose", action="store_true", help="print what every case did")
    asked = parser.parse_args()
    faulthandler.enable()
    sys.exit(bool(sum(run_target(name, asked) for name in asked.only)))


if __name__ == "__main__":
    main()
