"""JSON over HTTP from a device: a connection that is kept, a time-out, answers of bounded size."""

from __future__ import annotations

import base64
import json
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from workbench.errors import reason_of
from workbench.measure.meters.sample import FaultCode, MeterError
from workbench.measure.meters.secret import hidden

LARGEST_BYTES = 8 << 20


class JsonAddress:
    """Answers of ``url``. token: a bearer token; user, password: basic authentication.

    verify_tls: False takes any certificate.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        verify_tls: bool = True,
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._base = parts.path.rstrip("/")
        self._tls = parts.scheme == "https"
        self._timeout_s, self._verify = timeout_s, verify_tls
        self._headers = {"Accept": "application/json"}
        basic = None
        if user is not None:
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {basic}"
        elif token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._secrets = (password, token, basic)
        self._connection: HTTPConnection | None = None

    def get(self, path: str) -> Any:
        """The JSON at ``path``, which begins with a slash.

        Raises MeterError; its text repeats no password.
        """
        kept = self._connection is not None
        try:
            status, body = self._exchange(path)
        except TimeoutError:
            self.close()
            raise MeterError(f"no answer within {self._timeout_s:g} s", "timeout") from None
        except (OSError, HTTPException) as error:
            self.close()
            if kept and not isinstance(error, ssl.SSLError):
                # A connection that was kept may have been closed since.
                return self.get(path)
            raise MeterError(self.hidden(reason_of(error))) from None
        if status != 200:
            raise MeterError(f"{path.partition('?')[0]}: HTTP {status}", _code(status))
        try:
            return json.loads(body)
        except ValueError:
            raise MeterError(f"{path.partition('?')[0]}: no JSON", "wrong_type") from None

    def hidden(self, text: str) -> str:
        """``text`` without the password or token."""
        return hidden(text, *self._secrets)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._opened()
        self._connection.request("GET", self._base + path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read(LARGEST_BYTES + 1)
        if len(body) > LARGEST_BYTES or answer.will_close:
            self.close()
        if len(body) > LARGEST_BYTES:
            raise MeterError(f"an answer over {LARGEST_BYTES >> 20} MiB", "wrong_type")
        return answer.status, body

    def _opened(self) -> HTTPConnection:
        if not self._tls:
            return HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        context = ssl.create_default_context()
        if not self._verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)


def _code(status: int) -> FaultCode:
    if status in (401, 403):
        return "denied"
    return "unknown_name" if status == 404 else "no_answer"
