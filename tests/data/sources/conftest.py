"""A real HTTP server that speaks the hub's protocol, as far as `datasets` asks (FACTS.md section 8)."""

import hashlib
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ARTICLES = {
    # As the hub's: a row a line with its line end, but blank lines are empty rows.
    "train": [
        *["", " = One = \n", "", " The first article . \n", " = = Part = = \n", " More . \n"],
        *["", " = Two = \n", "", " Short . \n"],
    ],
    "validation": ["", " = Three = \n", "", " Held out . \n"],
    "test": ["", " = Four = \n", "", " At last . \n"],
}
ROWS = {
    "train": {"sentence": ["good", "bad", "fine"], "label": [1, 0, 1]},
    "test": {"sentence": ["hm"], "label": [-1]},
}
CARD = """---
configs:
- config_name: wikitext-tiny
  data_files:
  - {split: train, path: wikitext-tiny/train-*}
  - {split: validation, path: wikitext-tiny/validation-*}
  - {split: test, path: wikitext-tiny/test-*}
- config_name: sst-tiny
  data_files:
  - {split: train, path: sst-tiny/train-*}
  - {split: test, path: sst-tiny/test-*}
dataset_info:
- config_name: sst-tiny
  features:
  - {name: sentence, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': negative, '1': positive}}}
---
"""


def parquet(columns: dict) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def repository() -> dict[str, bytes]:
    files = {"README.md": CARD.encode()}
    for split, lines in ARTICLES.items():
        files[f"wikitext-tiny/{split}-00000-of-00001.parquet"] = parquet({"text": lines})
    for split, columns in ROWS.items():
        files[f"sst-tiny/{split}-00000-of-00001.parquet"] = parquet(columns)
    return files


class HubServer(ThreadingHTTPServer):
    """Serves the data set `owner/tiny`; `requests` lists what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = repository()
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/owner/tiny/tree/"):
            folder = "/".join(path.split("/")[7:])
            self._send(json.dumps(self._tree(folder)).encode(), "application/json")
        elif re.fullmatch(r"/api/datasets/owner/tiny(/revision/\w+)?", path):
            names = [{"rfilename": name} for name in self.server.files]
            info = {"id": "owner/tiny", "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": names}
            self._send(json.dumps(info).encode(), "application/json")
        elif match := re.fullmatch(r"/datasets/owner/tiny/resolve/\w+/(.+)", path):
            content = self.server.files.get(match[1])
            if content is None:
                self._refuse("EntryNotFound")
            else:
                self._send(content, "application/octet-stream")
        else:
            self._refuse("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = self.rfile.read(length)
        self.server.requests.append(f"POST {self.path}")
        if self.path.startswith("/api/datasets/owner/tiny/paths-info/"):
            names = [name for name in self.server.files if name.encode() in asked]
            self._send(json.dumps([self._entry(name) for name in names]).encode(), "application/json")
        else:
            self._refuse("RepoNotFound")

    def _tree(self, folder: str) -> list[dict]:
        prefix = f"{folder}/" if folder else ""
        inside = [name for name in self.server.files if name.startswith(prefix)]
        folders = sorted({prefix + name[len(prefix) :].split("/")[0] for name in inside if "/" in name[len(prefix) :]})
        return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders] + [
            self._entry(name) for name in inside if "/" not in name[len(prefix) :]
        ]

    def _entry(self, name: str) -> dict:
        content = self.server.files[name]
        return {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}

    def _send(self, content: bytes, kind: str) -> None:
        status, whole = 200, len(content)
        extra = {}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or whole - 1)
            content, status = content[first : last + 1], 206
            extra["Content-Range"] = f"bytes {first}-{last}/{whole}"
        self.send_response(status)
        extra |= {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        for name, value in {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A hub with the data set `owner/tiny` (configurations wikitext-tiny and sst-tiny)."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@contextmanager
def _listening() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """An address that accepts and stays silent."""
    with _listening() as endpoint:
        yield endpoint


@pytest.fixture
def closed_endpoint() -> str:
    """An address where nothing listens."""
    with _listening() as endpoint:
        pass
    return endpoint
