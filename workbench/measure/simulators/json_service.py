"""A service of JSON over HTTP: Redfish, and the half of Prometheus that a reader asks."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ServedJson = Callable[[dict[str, str]], Any]


class JsonService:
    """Answers 200 with what ``answers`` gives for a path and the query's parameters, 404 for other
    paths, 401 without ``login`` (user, password) where there is one. An answer that is bytes goes
    out as it is; a whole number is a status."""

    def __init__(
        self, answers: Mapping[str, ServedJson], login: tuple[str, str] | None = None
    ) -> None:
        service, wanted = self, None
        self.closed = False
        if login:
            wanted = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # the answer in one piece, which Nagle's algorithm holds back less

            def do_GET(self) -> None:
                if service.closed:
                    # A connection that is kept outlives the server that accepted it.
                    self.close_connection = True
                    return
                parts = urlsplit(self.path)
                answer = answers.get(parts.path)
                if wanted and self.headers.get("Authorization") != wanted:
                    # As careless as services are: what came is said.
                    said = {"error": f"not authorised: {self.headers.get('Authorization')}"}
                    self._send(401, json.dumps(said).encode())
                elif answer is None:
                    self._send(404, b"{}")
                else:
                    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                    body = answer(asked)
                    status = body if isinstance(body, int) else 200
                    raw = isinstance(body, bytes)
                    self._send(status, body if raw else json.dumps(body).encode())

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> JsonService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self._server.shutdown()
        self._server.server_close()


def redfish(
    watts: Callable[[], float | None], kwh: Callable[[], float] | None = None
) -> dict[str, ServedJson]:
    """The paths of a chassis ``1``; ``kwh`` asks for the newer ``EnvironmentMetrics``."""
    chassis = "/redfish/v1/Chassis"
    paths: dict[str, ServedJson] = {
        chassis: lambda _: {"Members": [{"@odata.id": f"{chassis}/1"}]},
    }
    if kwh is None:
        paths[f"{chassis}/1/Power"] = lambda _: {
            "PowerControl": [
                {"PowerConsumedWatts": watts(), "PowerMetrics": {"IntervalInMin": 1}},
                {"Name": "CPU", "PowerConsumedWatts": 1.0},
            ]
        }
    else:
        paths[f"{chassis}/1/EnvironmentMetrics"] = lambda _: {
            "PowerWatts": {"Reading": watts()},
            "EnergykWh": {"Reading": kwh()},
        }
    return paths
