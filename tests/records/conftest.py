"""A store of each kind: a folder, and an object store served on this machine."""

import logging
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench.records import store

BUCKET = "pilots"


class ObjectStore:
    """moto's S3, one request at a time: it looks at a condition and then writes, where S3 does both
    in one step. unavailable: it answers 503 to everything."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            create_backend_app,
        )

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port, self._moto = 0, DomainDispatcherApplication(create_backend_app)
        self._lock, self.unavailable = threading.Lock(), False
        self.start()

    def __call__(self, environ, start_response) -> list[bytes]:
        if self.unavailable:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        with self._lock:
            return list(self._moto(environ, start_response))

    def start(self) -> None:
        from moto.moto_server.werkzeug_app import MotoRequestHandler
        from werkzeug.serving import make_server

        self._server = make_server(
            "127.0.0.1", self.port, self, threaded=True, request_handler=MotoRequestHandler
        )
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start_in(self, seconds: float) -> None:
        threading.Timer(seconds, self.start).start()

    def asked(self, method: str, path: str, body: str = "") -> None:
        request = urllib.request.Request(
            f"{self.address}/{path}", body.encode(), {"Content-Type": "text/plain"}, method=method
        )
        urllib.request.urlopen(request).close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def served() -> Iterator[ObjectStore]:
    server = ObjectStore()
    server.asked("PUT", BUCKET)
    yield server
    server.stop()


@pytest.fixture
def s3(served, monkeypatch) -> Iterator[ObjectStore]:
    """The server, with one bucket, and this process's environment set to it."""
    settings = {
        "AWS_ENDPOINT_URL": served.address, "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    store._opened.cache_clear()
    yield served
    store._opened.cache_clear()


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"
    (tmp_path / "shared").mkdir()
    return f"file://{tmp_path}/shared"


@pytest.fixture
def quick(monkeypatch) -> None:
    """What does not answer is waited for a second or so, not a minute."""
    monkeypatch.setattr(store, "WAIT_S", 1.0)
    monkeypatch.setattr(store, "FIRST_PAUSE_S", 0.1)


def until(holds, what: str, wait_s: float = 60) -> None:
    deadline = time.monotonic() + wait_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
