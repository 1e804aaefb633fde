"""The load client beside another one on the same server: ``workbench bench client``.

They send to one server of this workbench at the same times, in rounds in which they take turns. The
others are NVIDIA's ``aiperf``, which sends the same bodies, and ``guidellm``, whose texts are its
own and as long (:mod:`.guidellm_client`). Both are installed apart, because their requirements are
not ours, and told where they are; without them only our own rows come. The time to the first token
is counted from the moment of sending here, because they know no other; ours from the intended
start, which is what every record of the workbench has, stands beside it. What the server itself
counted from a request's arrival, as a mean over the same round, tells whose reading is nearer.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from workbench.bench.guidellm_client import guidellm_times
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, StageError
from workbench.load.planned import PlannedRequest
from workbench.measure.statistics import mean_ratio
from workbench.serve.client import LoadProcesses, load_processes
from workbench.serve.endpoint import Endpoint, probe
from workbench.serve.process import server_process
from workbench.serve.spec import ServeSpec
from workbench.wording.counts import number_of

MODEL = "workbench"
PROMPT_TOKENS = 64
TIMES = ("ttft_wire_ms", "ttft_ms", "ttft_due_ms", "itl_ms", "e2e_ms", "dispatch_ms")
"""Of every request: first token from the moment the request was on its way, from the sending as
the client counts it and from the intended start; mean gap between tokens; last token from the
sending; sent minus intended."""
COMPARED = TIMES[:-1]
THROUGHPUT = "tokens_per_s"
"""Output tokens of a round over the time from its first sending to its last token, where a client
says when that was."""
Times = dict[str, list[float]]
ClientRow = dict[str, Any]


def bench_client(
    model: Path,
    aiperf: Path | None = None,
    guidellm: Path | None = None,
    *,
    rate_per_s: float = 4.0,
    requests: int = 32,
    output_tokens: int = 32,
    rounds: int = 6,
    threads: int = 0,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[ClientRow]:
    """Measure and say one line a round and client, then one a figure with ours over another's.

    model: a model folder with its tokenizer. aiperf, guidellm: their executables. threads: of the
    server, 0 for all usable cores. out: a file to which the lines are appended, each with its
    commit, machine and date.
    """
    others = {n: path for n, path in (("aiperf", aiperf), ("guidellm", guidellm)) if path}
    for name, path in others.items():
        if not path.exists():
            raise ConfigError(
                f"--{name} {path}: does not exist",
                allowed=f"the executable of {name}",
                next_step=f"python -m venv apart && apart/bin/pip install {name}; then --{name} "
                f"apart/bin/{name}",
            )
    if requests < 2 or rounds < 1 or rate_per_s <= 0 or output_tokens < 2:
        raise ConfigError(
            f"{rounds} x {number_of(requests, 'request')} of {number_of(output_tokens, 'token')}, "
            f"{rate_per_s:g} a second",
            allowed="2 requests of 2 tokens or more, a rate above 0, 1 round or more",
        )
    where: ClientRow = {}
    if out is not None:
        from workbench.machine.provenance import provenance

        where = {**provenance(), "date": time.strftime("%Y-%m-%d")}
    shape = {"model": model.name, "rate_per_s": rate_per_s, "output_tokens": output_tokens}
    found = []
    for row in _rows(model, others, rate_per_s, requests, output_tokens, rounds, threads):
        found.append({**row, **shape})
        say(json.dumps(found[-1]))
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**found[-1], **where}) + "\n")
    return found


def _rows(
    model: Path,
    others: Mapping[str, Path],
    rate_per_s: float,
    requests: int,
    output_tokens: int,
    rounds: int,
    threads: int,
) -> Iterator[ClientRow]:
    schedule, texts = _load(model, rate_per_s, requests, output_tokens)
    spec = ServeSpec({MODEL: model}, MODEL, MODEL, model=MODEL, threads=threads)
    medians: dict[str, Times] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        server_process(spec, folder := Path(name)) as server,
        load_processes(endpoint := Endpoint(server.address), folder, check=server.check) as client,
    ):
        network = probe(endpoint)
        yield {"connect_ms": network.connect_ms, "round_trip_ms": network.round_trip_ms}
        clients: dict[str, Callable[[], Times]] = {
            "workbench": lambda: _own(client, schedule, texts)
        }
        if aiperf := others.get("aiperf"):
            clients["aiperf"] = partial(
                _aiperf, aiperf, endpoint, model, folder / "aiperf", schedule, texts
            )
        if guidellm := others.get("guidellm"):
            clients["guidellm"] = partial(
                guidellm_times, guidellm, endpoint, model, folder / "guidellm", schedule, MODEL
            )
        _own(client, schedule, texts)  # nobody's first round warms the server
        for number in range(rounds):
            for who in list(clients)[:: 1 if number % 2 else -1]:
                before = _server_counts(endpoint)
                times = clients[who]()
                row: ClientRow = {"client": who, "round": number, "requests": requests}
                row |= _beside_the_server(times, before, _server_counts(endpoint))
                for each, values in times.items():
                    p50, p95 = np.quantile(values, (0.5, 0.95))
                    row |= {f"{each}_p50": round(p50, 3), f"{each}_p95": round(p95, 3)}
                    medians.setdefault(who, {}).setdefault(each, []).append(float(p50))
                yield row
    for who in others:
        for each in (*COMPARED, THROUGHPUT):
            if theirs := medians[who].get(each):
                yield _compared(each, medians["workbench"][each], theirs, who)


def _server_counts(endpoint: Endpoint) -> np.ndarray:
    """Seconds of first tokens, their number, seconds of whole answers, their number; so far."""
    names = ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds")
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=10.0)
    with closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    wanted = [f"{name}_{what}" for name in names for what in ("sum", "count")]
    return np.array([samples.get(name, 0.0) for name in wanted])


def _beside_the_server(times: Times, before: np.ndarray, after: np.ndarray) -> ClientRow:
    """Means of the round: the client's, and the server's own of the same requests."""
    first_s, firsts, whole_s, wholes = after - before
    return {
        "server_ttft_ms_mean": round(1e3 * first_s / firsts, 3),
        "ttft_wire_ms_mean": round(float(np.mean(times["ttft_wire_ms"])), 3),
        "server_e2e_ms_mean": round(1e3 * whole_s / wholes, 3),
        "e2e_ms_mean": round(float(np.mean(times["e2e_ms"])), 3),
    }


def _compared(
    figure: str, ours: list[float], theirs: list[float], who: str = "aiperf"
) -> ClientRow:
    ratio = mean_ratio(ours, theirs)
    return {
        "figure": f"{figure}_p50",
        "workbench": round(float(np.median(ours)), 3),
        who: round(float(np.median(theirs)), 3),
        "ratio": ratio.value,
        "lo": ratio.lo,
        "hi": ratio.hi,
        "rounds": len(ours),
    }


def _load(
    model: Path, rate_per_s: float, requests: int, output_tokens: int
) -> tuple[list[PlannedRequest], list[str]]:
    """Poisson arrivals with texts of their own, the same in every run."""
    tokenizer, random = load_tokenizer(str(model)), np.random.default_rng(0)
    due_s = np.cumsum(random.exponential(1 / rate_per_s, requests)).round(3)  # aiperf's grain
    texts = [
        str(
            tokenizer.decode(
                random.integers(0, len(tokenizer), PROMPT_TOKENS), skip_special_tokens=True
            )
        )
        for _ in due_s
    ]
    schedule = [
        PlannedRequest(i, float(at), PROMPT_TOKENS, output_tokens, "interactive", False)
        for i, at in enumerate(due_s)
    ]
    return schedule, texts


def _own(client: LoadProcesses, schedule: Sequence[PlannedRequest], texts: Sequence[str]) -> Times:
    outcomes = client.replay(schedule, lambda planned: texts[planned.id])
    found: Times = {each: [] for each in TIMES}
    for o in outcomes:
        if o.status != "ok" or o.first_token_s is None or o.last_token_s is None:
            raise StageError(f"a request failed: {o.error}")
        gap_s = (o.last_token_s - o.first_token_s) / (o.output_tokens - 1)
        values = (
            o.first_token_s - o.sent_s,
            o.first_token_s - o.sent_s,
            o.first_token_s - o.intended_s,
            gap_s,
            o.last_token_s - o.sent_s,
            o.sent_s - o.intended_s,
        )
        for each, value in zip(TIMES, values, strict=True):
            found[each].append(1e3 * value)
    seconds = max(o.last_token_s or 0.0 for o in outcomes) - min(o.sent_s for o in outcomes)
    found[THROUGHPUT] = [sum(o.output_tokens for o in outcomes) / seconds]
    return found


def _aiperf(
    aiperf: Path,
    endpoint: Endpoint,
    tokenizer: Path,
    folder: Path,
    schedule: Sequence[PlannedRequest],
    texts: Sequence[str],
) -> Times:
    """One run of aiperf on a fixed schedule of the same bodies, from its records."""
    folder.mkdir(exist_ok=True)
    trace, results = folder / "trace.jsonl", folder / "results"
    with trace.open("w", encoding="utf-8") as file:
        for planned, text in zip(schedule, texts, strict=True):
            row = {"timestamp": 1e3 * planned.intended_s}
            row["payload"] = json.loads(endpoint.body(planned, text))
            file.write(json.dumps(row) + "\n")
    command = [
        *(str(aiperf), "profile", "--url", endpoint.address, "--model", MODEL),
        *("--endpoint-type", "completions", "--streaming", "--tokenizer", str(tokenizer.resolve())),
        *("--input-file", str(trace), "--custom-dataset-type", "mooncake_trace"),
        *("--fixed-schedule", "--use-server-token-count", "--output-artifact-dir", str(results)),
        *("--workers-max", "1", "--record-processors", "1", "--ui", "none"),
        *("--no-gpu-telemetry", "--no-server-metrics"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    records = results / "profile_export.jsonl"
    if ran.returncode or not records.exists():
        end = "\n".join((ran.stdout + ran.stderr).splitlines()[-15:])
        raise StageError(f"aiperf ended with code {ran.returncode}:\n{end}")
    found: Times = {each: [] for each in TIMES}
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        metrics, at = record["metrics"], record["metadata"]
        late_ms = (at["request_start_ns"] - at["credit_issued_ns"]) / 1e6
        ttft_ms = metrics["time_to_first_token"]["value"]
        found["ttft_wire_ms"].append(metrics["http_req_waiting"]["value"])
        found["ttft_ms"].append(ttft_ms)
        found["ttft_due_ms"].append(ttft_ms + late_ms)  # from the moment it was told to send
        found["itl_ms"].append(metrics["inter_token_latency"]["value"])
        found["e2e_ms"].append(metrics["request_latency"]["value"])
        found["dispatch_ms"].append(late_ms)
    if len(found["ttft_ms"]) != len(schedule):
        raise StageError(
            f"aiperf recorded {len(found['ttft_ms'])} of {number_of(len(schedule), 'request')}"
        )
    return found
