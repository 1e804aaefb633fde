"""An OpenAI-compatible address as a load client sees it: where, which model, what a body says.

A key is never part of it, only the name of the environment variable that holds one: an
:class:`Endpoint` may be written down.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import ssl
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from workbench.errors import ConfigError, StageError
from workbench.load.planned import PlannedRequest

PromptInput = list[int] | str
"""Token ids, or text."""
PROBE_TIMEOUT_S, ANSWER_TIMEOUT_S = 10.0, 300.0


@dataclass(frozen=True)
class Endpoint:
    """Where a load goes.

    address: base URL as OpenAI's clients take it, e.g. ``http://127.0.0.1:8000/v1``; without a
    path ``/v1`` is meant. model: what requests ask for; None leaves it out. api_key_env: the
    environment variable with the key. chat: ``/chat/completions`` with the prompt as the user's
    message, which has to be text. fixed_length: exactly the planned output tokens are asked for
    (``ignore_eos``, ``min_tokens``: this workbench, vLLM, SGLang); otherwise they are the most,
    and a shorter answer is whole. allow_remote: the pilot names this address, so it may be
    another machine's.

    Raises ConfigError for what is not such an address.
    """

    address: str
    model: str | None = None
    api_key_env: str | None = None
    chat: bool = False
    fixed_length: bool = True
    allow_remote: bool = False

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.address)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), 0
        plain = not (parts.query or parts.fragment or parts.username or parts.password)
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not plain:
            # The address is not repeated: what is wrong with it may be a password.
            raise ConfigError(
                "an endpoint is no base URL",
                allowed="http or https, host, port and path, e.g. http://127.0.0.1:8000/v1; a "
                "key stands in an environment variable",
            )
        if not self.allow_remote and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.address}: not a loopback address",
                allowed="a load is sent to this machine, or to an address that the pilot names as "
                "an arm's endpoint",
            )
        self.key()

    @property
    def tls(self) -> bool:
        return urlsplit(self.address).scheme == "https"

    @property
    def host(self) -> str:
        return urlsplit(self.address).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or (443 if self.tls else 80)

    @property
    def base(self) -> str:
        """The path that all others begin with."""
        return urlsplit(self.address).path.rstrip("/") or "/v1"

    def key(self) -> str | None:
        """The key's value. Raises ConfigError when its variable is not set."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "").strip()
        if not value.isascii() or not value.isprintable() or not value:
            raise ConfigError(
                f"the environment variable {self.api_key_env} "
                + ("is not set" if not value else "holds no key: it is not plain text"),
                allowed=f"the key of {self.address}",
                next_step=f"export {self.api_key_env}=..., and start again",
            )
        return value

    def headers(self) -> dict[str, str]:
        host = f"[{self.host}]" if ":" in self.host else self.host
        authorization = {"authorization": f"Bearer {key}"} if (key := self.key()) else {}
        return {"host": f"{host}:{self.port}", "user-agent": "ternary-workbench", **authorization}

    def body(self, planned: PlannedRequest, prompt: PromptInput, model: str | None = None) -> bytes:
        """What asks for one answer as a stream. model: instead of this endpoint's own.

        Raises ValueError for a chat with token ids.
        """
        if self.chat and not isinstance(prompt, str):
            raise ValueError("a chat's prompt is text, not token ids")
        tokens = planned.output_tokens
        fields = {
            **({"model": model or self.model} if model or self.model else {}),
            **({"messages": [{"role": "user", "content": prompt}]} if self.chat else {}),
            **({} if self.chat else {"prompt": prompt}),
            "max_tokens": tokens,
            **({"min_tokens": tokens, "ignore_eos": True} if self.fixed_length else {}),
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(fields).encode()

    def request(self, body: bytes) -> bytes:
        """A whole POST of ``body``, as it goes over a connection of its own."""
        path = f"{self.base}/{'chat/completions' if self.chat else 'completions'}"
        headers = {
            **self.headers(),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "connection": "close",
        }
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class NetworkProbe:
    """The network's part of a latency, in several tries one after the other, milliseconds.

    connects_ms: until a connection stood, TLS included. round_trips_ms: a GET of ``path`` over a
    connection that stood, the server's own time for that small answer included.
    """

    connects_ms: tuple[float, ...]
    round_trips_ms: tuple[float, ...]
    path: str

    @property
    def count(self) -> int:
        return len(self.connects_ms)

    @property
    def connect_ms(self) -> float:
        """The median."""
        return statistics.median(self.connects_ms)

    @property
    def round_trip_ms(self) -> float:
        """The median."""
        return statistics.median(self.round_trips_ms)


def probe(endpoint: Endpoint, count: int = 9) -> NetworkProbe:
    """Measure it now. Raises StageError when nothing answers."""
    path, headers = f"{endpoint.base}/models", endpoint.headers()
    connect_s, round_trip_s = [], []
    try:
        for _ in range(count):
            with closing(_connection(endpoint)) as connection:
                began = time.perf_counter()
                connection.connect()
                connected = time.perf_counter()
                connection.request("GET", path, headers=headers)
                connection.getresponse().read()
                round_trip_s.append(time.perf_counter() - connected)
                connect_s.append(connected - began)
    except (OSError, http.client.HTTPException) as error:
        raise StageError(
            f"{endpoint.address} does not answer: {type(error).__name__}: {error}",
            next_step="start that server, or correct the address",
        ) from None
    connects_ms, round_trips_ms = (tuple(1e3 * s for s in of) for of in (connect_s, round_trip_s))
    return NetworkProbe(connects_ms, round_trips_ms, path)


def ask(endpoint: Endpoint, prompt: PromptInput, tokens: int, model: str | None = None) -> str:
    """The text of one greedy answer of ``tokens``, not streamed and not timed. model: instead of
    the endpoint's. Raises StageError when there is none."""
    planned = PlannedRequest(0, 0.0, len(prompt), tokens, "probe", False)
    fields = json.loads(endpoint.body(planned, prompt, model)) | {"stream": False}
    del fields["stream_options"]
    path = f"{endpoint.base}/{'chat/completions' if endpoint.chat else 'completions'}"
    headers = {**endpoint.headers(), "content-type": "application/json"}
    try:
        with closing(_connection(endpoint, ANSWER_TIMEOUT_S)) as connection:
            connection.request("POST", path, json.dumps(fields), headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}: {text[:200]}")
        choice = json.loads(text)["choices"][0]
        return str(choice["message"]["content"] if endpoint.chat else choice["text"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise StageError(
            f"{endpoint.address} gave no answer: {type(error).__name__}: {error}",
            next_step="look into that server's log",
        ) from None


def _connection(
    endpoint: Endpoint, timeout_s: float = PROBE_TIMEOUT_S
) -> http.client.HTTPConnection:
    where = endpoint.host, endpoint.port
    if endpoint.tls:
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(*where, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(*where, timeout=timeout_s)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
