"""Fetching a released tokenizer, from a server of our own that answers as the hub does."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from slm.data.vocabulary import byte_tokenizer, plan_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLAN = """
import json, sys
from slm.data.vocabulary import byte_tokenizer, plan_tokenizer
try:
    plan = plan_tokenizer({"kind": "file", "path": sys.argv[1], "revision": None})
    tokenizer = plan.make(None)
    print(tokenizer.name, tokenizer.fingerprint, tokenizer.eos_id, tokenizer.bos_id)
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A tokenizer whose config, and not its name, says which token ends a text."""
    folder = tmp_path_factory.mktemp("released")
    ours = byte_tokenizer()
    ours.save(folder)
    content = (folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<stop>")
    (folder / "tokenizer.json").write_text(content)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<stop>", "auto_map": {"AutoTokenizer": "code.py"}}')
    (folder / "code.py").write_text("raise SystemExit('remote code was run')")
    return folder


@pytest.fixture
def hub(released):
    """The address of the server and the paths that it was asked for."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            asked.append(self.path)
            name = self.path.removeprefix("/some/model/resolve/main/")
            known = self.path == "/" or self.path.startswith("/some/model/")
            content = (released / name).read_bytes() if known and (released / name).is_file() else b""
            self.send_response(200 if content or self.path == "/" else 404)
            if not content:
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{name}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def ask(python, path, home, endpoint):
    answer, errors = python(PLAN, path, HF_HOME=str(home), HF_ENDPOINT=endpoint).communicate(timeout=100)
    return answer.strip(), errors


def test_a_hub_id_is_fetched_once_and_without_its_code(python, hub, released, tmp_path):
    endpoint, asked = hub
    local = plan_tokenizer({"kind": "file", "path": str(released), "revision": None}).make(lambda: iter([]))
    expected = f"some/model {local.fingerprint} 256 None"
    assert ask(python, "some/model", tmp_path, endpoint)[0] == expected
    assert not [path for path in asked if path.endswith(".py")]
    assert ask(python, "some/model", tmp_path, "http://127.0.0.1:9")[0] == expected  # from the cache, offline


def test_a_repository_that_is_not_there_is_named(python, hub, tmp_path):
    answer, errors = ask(python, "no/model", tmp_path, hub[0])
    assert answer.startswith("tokenizer.path='no/model' cannot be fetched from the hub"), errors
    assert "\n" not in answer
