"""Things that fail: a server that never answers, one that hangs later, and a disk that is full."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def silent_host() -> Iterator[str]:
    """The address of a server that lets itself be connected to and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def host_that_hangs_later() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that lets a run start and never answers once rows are sent, and its requests."""
    asked: list[str] = []
    hangs, ended = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path != "/graphql":
                hangs.set()
            operation = json.loads(body) if self.path == "/graphql" else {}
            asked.append(operation.get("operationName") or operation.get("query", self.path)[:60])
            if hangs.is_set():
                ended.wait()
                return
            answer = json.dumps({"data": _answer(asked[-1], operation.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    ended.set()
    server.shutdown()
    server.server_close()


def _answer(operation: str, variables: dict[str, Any]) -> dict[str, Any]:
    if "UpsertBucket" in operation:
        project = {"id": "project", "name": "nsr", "entity": {"id": "entity", "name": "user"}}
        name = variables.get("name") or "run"
        bucket = {"id": "bucket", "name": name, "displayName": name, "config": "{}", "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0, "sweepName": None}, "inserted": True}}
    if "Viewer" in operation or "viewer" in operation:
        return {"viewer": {"id": "id", "entity": "user", "username": "user", "flags": "{}"}}
    if "Stopped" in operation:
        return {"project": {"run": {"stopped": False}}}
    if "ServerFeatures" in operation:
        return {"serverInfo": {"features": []}}
    return {}


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size`, such as '1m', mounted at `folder`; the test is skipped where none can be."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Mount it again with other options: 'ro', 'size=8m'."""
    _mount("-o", f"remount,{options}", str(folder))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
