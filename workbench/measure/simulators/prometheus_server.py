"""A real Prometheus (Debian's package ``prometheus``) that scrapes an exporter of ours."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STARTS_WITHIN_S = 30.0
CONFIG = """\
scrape_configs:
  - job_name: played
    scrape_interval: {interval_ms}ms
    scrape_timeout: {interval_ms}ms
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


def prometheus_here() -> bool:
    return shutil.which("prometheus") is not None


class PrometheusServer:
    """Scrapes what ``shown`` gives every ``interval_s``: a series with its labels -> its value.

    Its data go to ``folder``. killed: :meth:`close` in the middle of anything.
    """

    def __init__(
        self, folder: Path, shown: Callable[[], dict[str, float]], interval_s: float = 0.2
    ) -> None:
        class Exporter(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = "".join(
                    f"{series} {value!r}\n" for series, value in shown().items()
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._exporter = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
        self._exporter.daemon_threads = True
        threading.Thread(target=self._exporter.serve_forever, args=(0.05,), daemon=True).start()
        port = int(self._exporter.server_address[1])
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(interval_ms=round(1000 * interval_s), port=port))
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()

    def __enter__(self) -> PrometheusServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._exporter.shutdown()
        self._exporter.server_close()

    def _wait(self) -> None:
        until_s = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < until_s and self._process.poll() is None:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=1.0)
            try:
                connection.request("GET", "/-/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        self.close()
        raise TimeoutError("Prometheus did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
