"""What W&B wrote into an offline run, record by record.

A `.wandb` file is a log of protocol buffers in the format of LevelDB's: after a header of 7 bytes, blocks of 32 KiB of
chunks, each with a checksum (4 bytes), a length (2) and a kind (1: 1 a whole record, 2 to 4 the first, a middle, the
last part of one).
"""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
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


def history(file: Path) -> list[dict[str, Any]]:
    """The rows of a `.wandb` file, in order."""
    return [values(record.history.item) for record in records(file) if record.WhichOneof("record_type") == "history"]


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_run(folder: Path) -> dict[str, Any]:
    """`id`, `name`, `group`, `tags`, `job_type`, `config`, `summary`, `tables` and `charts` of the run in `folder`.

    Each chart has the preset, the fields and the title that W&B draws it by, and the `table` that it is drawn from.
    """
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, Any] = {"config": {}, "summary": {}}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "name": run.display_name, "group": run.run_group, "job_type": run.job_type}
            found |= {"tags": list(run.tags)}
            found["config"] |= values(run.config.update)
        elif kind == "config":
            found["config"] |= values(record.config.update)
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
    tables = file.parent.glob("files/media/table/*.table.json")
    found["tables"] = {path.name.partition("_")[0]: json.loads(path.read_text()) for path in tables}
    return found | {"charts": dict(_charts(found["config"], file.parent / "files/media/table"))}


def _charts(config: dict[str, Any], tables: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in config.items():
        prefix, _, name = key.partition("_wandb/visualize/")
        if name and not prefix:
            panel = value["panel_config"]
            (path,) = tables.glob(f"{name}_table_*.table.json")
            chart = {
                "preset": panel["panelDefId"],
                "fields": panel["fieldSettings"],
                "strings": panel["stringSettings"],
            }
            yield name.removeprefix("charts/"), chart | {"table": json.loads(path.read_text())}


def inspected(file: Path) -> dict[str, Any]:
    """What W&B's own reader tells of a `.wandb` file: its name, config and summary."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(file)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


class Server:
    """Stands in for W&B's server: `rows` holds what was streamed into it, a line each, by its place in the run."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                is_json = self.path.startswith(("/graphql", "/files"))
                asked = json.loads(gzip.decompress(body) if zipped else body) if is_json else {}
                self.answer({"data": server.answer(asked)} if self.path == "/graphql" else server.take(asked))

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer({})

            def answer(self, value: Any) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a query gets: a run that has as many lines as were streamed, places for its files, else nothing."""
        query, given = asked["query"], asked.get("variables") or {}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "UpsertBucket" not in query:
            return {}
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
        run = {"id": "r", "name": given["name"], "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": run | {"historyLineCount": len(self.rows)}, "inserted": not self.rows}}

    def take(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Keep what a file stream brings of the history."""
        part = asked.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        self.rows |= {place: json.loads(line) for place, line in enumerate(part["content"], part["offset"])}
        return {}

    def __enter__(self) -> "Server":
        Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


SETTINGS = {"wandb": True, "tensorboard": False, "mode": "offline", "project": "slm-test", "entity": None}
SETTINGS |= {"group": "a-group", "tags": ["x", "y"], "job_type": "train"}
