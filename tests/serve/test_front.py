"""The front of the server: ids and lines of requests, keys, certificates, lengths, energy."""

from __future__ import annotations

import json
import logging
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry, generate_latest

from workbench.cli import main
from workbench.errors import ConfigError
from workbench.measure.meters.clock import SteppedClock
from workbench.measure.meters.sample import Channel, MeterFault, Sample
from workbench.serve.energy_count import EnergyCount, energy_count
from workbench.serve.front_options import FrontOptions
from workbench.serve.kept_route import KeptRoute, _ask
from workbench.serve.log import JsonLines
from workbench.serve.metrics import _Scraped
from workbench.serve.routed import Route

KEY = "a secret of the team"
CONTEXT = 64
"""Of the server in conftest.py."""


@pytest.fixture
def lines(caplog) -> list[dict]:
    """The access lines as the JSON form writes them, as they come."""
    caplog.set_level(logging.INFO, "workbench.access")

    class Lines(list):
        def __iter__(self):
            form = JsonLines()
            return (json.loads(form.format(record)) for record in caplog.records)

    return Lines()


def test_a_line_says_what_became_of_a_request_and_nothing_of_its_text(serve, lines) -> None:
    served = serve()
    answer = served.complete(max_tokens=3, prompt="my secret", user="alice")
    served.until(lambda: any(lines))
    (line,) = lines
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["event"] == "request" and datetime.fromisoformat(line["time"]).tzinfo
    wanted = {
        "client": "127.0.0.1", "method": "POST", "path": "/v1/completions", "status": 200,
        "arm": "hybrid", "finish_reason": "length", "error": None, "output_tokens": 3,
    }  # fmt: skip
    assert line.items() >= wanted.items()
    assert 0 <= line["queue_s"] <= line["ttft_s"] <= line["duration_s"] < 5
    assert line["prompt_tokens"] > 1 and "secret" not in json.dumps(line)


def test_a_clients_own_id_goes_back_and_one_that_no_log_can_hold_does_not(plain) -> None:
    ask = plain.client.get
    assert ask("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "x" * 200, "é".encode("latin-1")):
        made = ask("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert made != bad and len(made) == 32
    assert plain.complete(max_tokens=0).headers["x-request-id"]  # an error has one too


def test_errors_and_clients_that_leave_are_counted_and_said(serve, lines) -> None:
    served = serve()
    assert served.complete(max_tokens=0).status_code == 400
    assert served.client.get("/nowhere/at/all").status_code == 404
    served.schedulers["hybrid"].gate.clear()
    with suppress(httpx.TimeoutException):
        served.client.post("/v1/completions", json={"prompt": "x"}, timeout=0.1)
    served.until(lambda: len(list(lines)) == 3)
    assert [line["status"] for line in lines] == [400, 404, 499]
    assert list(lines)[-1]["finish_reason"] == "cancelled"
    text = served.client.get("/metrics").text
    for path, status in (("/v1/completions", 400), ("other", 404), ("/v1/completions", 499)):
        assert f'http_responses_total{{path="{path}",status="{status}"}} 1.0' in text


def test_an_engine_that_raises_has_its_traceback_in_the_line() -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "it %s", ("fell",), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["event"]) == ("error", "it fell")
    assert "KeyError: 'gone'" in line["error"] and "\n" not in JsonLines().format(record)


def test_the_key_guards_what_costs_and_no_probe(serve, monkeypatch) -> None:
    monkeypatch.setenv("TEAM_KEY", f" {KEY}\n")
    served = serve(front=FrontOptions(api_key_env="TEAM_KEY"))
    for given in ({}, {"authorization": KEY}, {"authorization": "Bearer another"}):
        for path in ("/v1/models", "/v1/completions", "/v1/nothing"):
            refused = served.client.get(path, headers=given)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "invalid_api_key"
    good = {"authorization": f"Bearer {KEY}"}
    body = {"prompt": "x", "max_tokens": 1}
    assert served.client.post("/v1/completions", json=body, headers=good).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert served.client.get(path).status_code == 200


@pytest.mark.parametrize("value", [None, "", "two\nlines", "schlüssel"])
def test_a_key_that_is_not_set_is_said_before_anything_starts(monkeypatch, value) -> None:
    monkeypatch.delenv("TEAM_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEAM_KEY", value)
    with pytest.raises(ConfigError, match=r"--api-key TEAM_KEY[\s\S]*the NAME of an environment"):
        FrontOptions(api_key_env="TEAM_KEY").check()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "workbench")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "server.crt").write_bytes(made.public_bytes(pem))
    for name, secret in (
        ("server.key", serialization.NoEncryption()),
        ("locked.key", serialization.BestAvailableEncryption(b"x")),
    ):
        written = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, secret)
        (folder / name).write_bytes(written)
    return folder / "server.crt", folder / "server.key"


def test_https_answers_streams_and_orders(serve, certificate) -> None:
    front = FrontOptions(*map(str, certificate))
    front.check()
    served = serve(front=front)
    assert served.address.startswith("https://")
    body = {"prompt": "x", "max_tokens": 3, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.read().count(b"data: ") == 5
    kept = KeptRoute("hybrid", 1.0, "", "full_precision", served.address, "", str(certificate[0]))
    assert _ask(kept, "GET")["arm"] == "hybrid"
    order = {"arm": "full_precision"}
    assert _ask(kept, "POST", order)["arm"] == "full_precision"
    port = urlsplit(served.address).port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain_text:
        plain_text.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" not in plain_text.recv(1000)


def test_certificates_that_cannot_be_used_are_said(certificate, tmp_path: Path) -> None:
    crt, key = map(str, certificate)
    other = tmp_path / "other.key"
    made = ec.generate_private_key(ec.SECP256R1())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other.write_bytes(made.private_bytes(pem, form, serialization.NoEncryption()))
    for given in (
        (crt, str(tmp_path / "none.key")), (crt, str(other)), (key, key), (crt, None),
        (crt, str(Path(key).with_name("locked.key"))),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="cannot be used for HTTPS"):
            FrontOptions(*given).check()
    with pytest.raises(ConfigError, match="without a certificate"):
        FrontOptions(None, key).check()


def test_the_longest_body_is_what_it_was_told(serve) -> None:
    served = serve(front=FrontOptions(max_body_bytes=200))
    assert served.complete(max_tokens=1).status_code == 200
    refused = served.complete(prompt="x" * 300)
    assert refused.status_code == 413 and refused.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--log", "xml"], "'text', 'json'"),
        (["--max-body", "0"], "0.001"),
        (["--api-key", "NOT_SET_ANYWHERE"], "no such variable"),
        (["--ssl-keyfile", "a.key"], "give --ssl-certfile too"),
    ],
)
def test_wrong_options_are_wrong_commands(arms, monkeypatch, capsys, options, says) -> None:
    monkeypatch.setattr("sys.argv", ["workbench", "serve", str(arms["hybrid"]), *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and says in capsys.readouterr().err


class PlayedMeter:
    """Says what it is given, one list a reading."""

    reader = "rapl"

    def __init__(self, *readings: list) -> None:
        self.notes, self._readings, self.closed = [], list(readings), False

    def read(self) -> list:
        found = self._readings.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        self.closed = True


def test_energy_grows_over_wraps_and_never_over_gaps() -> None:
    package = Channel("rapl", "package-0", "cpu", "energy", wraps_at_j=1000.0)
    feed = Channel("csv", "feed", "node", "power")

    def at(second: float, joules: float, watts: float) -> list:
        return [Sample(package, second, 0.0, joules), Sample(feed, second, 0.0, watts)]

    meter = PlayedMeter(
        at(0, 900, 100), at(1, 950, 200), OSError("busy"), [MeterFault("torn")],
        at(2, 20, 200), at(60, 30, 200),
    )  # fmt: skip
    with EnergyCount([meter], max_gap_s=3.0, clock=SteppedClock()) as count:
        for _ in range(5):
            count.read()
    registry = CollectorRegistry()
    registry.register(_Scraped(count.families))
    text = generate_latest(registry).decode()
    labels = 'place="package-0",reader="rapl",scope="cpu"'
    assert f"workbench_energy_joules_total{{{labels}}} 130.0" in text
    assert 'place="feed",reader="csv",scope="node"} 350.0' in text
    assert 'workbench_meter_faults_total{reader="rapl"} 2.0' in text and meter.closed


def test_no_meter_is_no_energy(monkeypatch) -> None:
    with energy_count(None) as count:
        assert [family.samples for family in count.families()] == [[], []]

    def broken(*given: object, **options: object) -> None:
        raise ConfigError("a log that is none")

    monkeypatch.setattr("workbench.serve.energy_count.find_meters", broken)
    with energy_count({}) as count:
        assert [family.samples for family in count.families()] == [[], []]


def test_the_share_of_the_cache_that_is_in_use(serve) -> None:
    served = serve(slots=2)
    served.schedulers["hybrid"].gate.clear()
    usage = 'vllm:kv_cache_usage_perc{arm="hybrid",model_name="pilot"}'
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.complete, prompt=[5] * 16, max_tokens=2)
        served.until(lambda: served.service.router.running == 1)
        assert f"{usage} {16 / (2 * CONTEXT)}" in served.client.get("/metrics").text
        served.schedulers["hybrid"].gate.set()
        assert asked.result().status_code == 200
    assert f"{usage} 0.0" in served.client.get("/metrics").text


def test_a_client_stays_with_one_arm_by_its_header_or_its_user(serve) -> None:
    served = serve(route=Route("hybrid", 0.5))

    def arms(asked: dict, headers: dict) -> set[str]:
        answers = [
            served.client.post("/v1/completions", json=asked, headers=headers) for _ in range(6)
        ]
        return {answer.headers["x-workbench-arm"] for answer in answers}

    asked, both = {"prompt": "def", "max_tokens": 1}, {"hybrid", "full_precision"}
    assert arms(asked, {}) == arms({**asked, "user": "somebody"}, {}) == both
    by_session = [arms(asked, {"x-workbench-session": f"client {k}"}) for k in range(8)]
    assert all(len(each) == 1 for each in by_session) and set().union(*by_session) == both
    served.service.sticky_user = True
    by_user = [arms({**asked, "user": f"client {k}"}, {}) for k in range(8)]
    assert by_user == by_session, "the same words mean the same client"
    assert arms({**asked, "user": "client 0"}, {"x-workbench-session": "client 1"}) == by_session[1]
