"""guidellm on a fixed schedule: its own account of each request, in our terms.

It replays arrivals and lengths, and writes texts of its own of that length. It counts from the
moment at which it builds the request; when it was to send that, its ``targeted_start``, stands in
the same record, so both readings come from one request.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import StageError
from workbench.load.planned import PlannedRequest
from workbench.serve.endpoint import Endpoint
from workbench.wording.counts import number_of

LEFT_OUT_S = 0.25
"""guidellm 0.8.1 ends a replay before the last row of its trace: one more is given, so late."""


def guidellm_times(
    guidellm: Path,
    endpoint: Endpoint,
    tokenizer: Path,
    folder: Path,
    schedule: Sequence[PlannedRequest],
    model: str,
) -> dict[str, list[float]]:
    """One run of guidellm's executable. folder: for its files. Raises StageError where it ends
    otherwise than with all requests answered."""
    folder.mkdir(exist_ok=True)
    trace, results = folder / "trace.jsonl", folder / "benchmarks.json"
    results.unlink(missing_ok=True)
    last = schedule[-1]
    planned = [(p.intended_s, p.prompt_tokens, p.output_tokens) for p in schedule]
    planned.append((last.intended_s + LEFT_OUT_S, last.prompt_tokens, last.output_tokens))
    names = ("timestamp", "input_length", "output_length")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in planned]
    trace.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"kind": "json_file", "path": str(trace)}
    command = [
        *(str(guidellm), "run", "--disable-console", "--profile"),
        *("kind=replay,schedule_turn=timestamp", "--backend"),
        json.dumps(
            {
                "kind": "openai_http",
                "target": endpoint.address,
                "model": model,
                "request_format": "/v1/completions",
            }
        ),
        *("--tokenizer", json.dumps({"kind": "hf_auto", "model": str(tokenizer.resolve())})),
        *("--data", json.dumps({"kind": "trace_synthetic", "source": source})),
        *("--output", json.dumps({"kind": "json", "path": str(results)})),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode or not results.exists():
        end = "\n".join((ran.stdout + ran.stderr).splitlines()[-15:])
        raise StageError(f"guidellm ended with code {ran.returncode}:\n{end}")
    said = json.loads(results.read_text(encoding="utf-8"))["benchmarks"][0]["requests"]
    return _times(said, len(schedule))


def _times(said: dict[str, Any], wanted: int) -> dict[str, list[float]]:
    """What its file says of the first ``wanted`` requests, by the moment they were to be sent."""
    answered = sorted(
        said["successful"], key=lambda each: each["info"]["timings"]["targeted_start"]
    )
    if said["errored"] or len(answered) < wanted:
        raise StageError(
            f"guidellm recorded {len(answered)} of {number_of(wanted, 'request')}, and "
            f"{len(said['errored'])} as failed"
        )
    answered = answered[:wanted]
    late_ms = [
        1e3 * (each["request_start_time"] - each["info"]["timings"]["targeted_start"])
        for each in answered
    ]
    ttft_ms = [float(each["time_to_first_token_ms"]) for each in answered]
    seconds = max(e["request_end_time"] for e in answered) - min(
        e["request_start_time"] for e in answered
    )
    return {
        "ttft_wire_ms": ttft_ms,
        "ttft_ms": ttft_ms,
        "ttft_due_ms": [ttft + late for ttft, late in zip(ttft_ms, late_ms, strict=True)],
        "itl_ms": [float(each["inter_token_latency_ms"]) for each in answered],
        "e2e_ms": [1e3 * each["request_latency"] for each in answered],
        "dispatch_ms": late_ms,
        "tokens_per_s": [sum(each["output_tokens"] for each in answered) / seconds],
    }
