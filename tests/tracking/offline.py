"""What W&B wrote into an offline run, record by record.

A `.wandb` file is a log of protocol buffers in the format of LevelDB's: after a header of 7 bytes, blocks of 32 KiB of
chunks, each with a checksum (4 bytes), a length (2) and a kind (1: 1 a whole record, 2 to 4 the first, a middle, the
last part of one).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, CHUNK, BLOCK = 7, 7, 32 * 1024
WHOLE, LAST = 1, 4


def records(file: Path) -> Iterator[Any]:
    """Every record of a `.wandb` file, in order."""
    data, place, held = file.read_bytes(), HEADER, b""
    while place + CHUNK <= len(data):
        if BLOCK - place % BLOCK < CHUNK:  # what no chunk fits into is left empty
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        held += data[place + CHUNK : place + CHUNK + length]
        place += CHUNK + length
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(held)
            held = b""


def offline_run(folder: Path) -> dict[str, Any]:
    """`id`, `name`, `group`, `tags`, `job_type`, `config`, `summary` and `tables` of the offline run in `folder`."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, Any] = {"config": {}, "summary": {}}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "name": run.display_name, "group": run.run_group, "job_type": run.job_type}
            found |= {"tags": list(run.tags)}
            found["config"] |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "summary":
            found["summary"] |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
    tables = file.parent.glob("files/media/table/*.table.json")
    return found | {"tables": {path.name.partition("_")[0]: json.loads(path.read_text()) for path in tables}}
