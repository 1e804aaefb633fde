"""Damaged traces: no traceback, and no rate that is wrong without a word.

Lines of a known trace are cut, mixed, doubled in part, filled with other bytes or thrown away. What
comes out is a clear error, or a profile whose requests are the undamaged ones: its rate is theirs,
and what was left out is counted.
"""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.load.trace import read_trace
from workbench.pilot.sections.profile_load import ProfileLoad

FORMATS = ("azure", "mooncake", "openai_jsonl", "burstgpt")
JUNK = bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"")
ANY = {"max_bad_share": 1.0}


def lines_of(format_: str, times: np.ndarray) -> list[bytes]:
    start = np.datetime64("2026-03-02T08:00:00.000000")
    found = [b"TIMESTAMP,ContextTokens,GeneratedTokens"] if format_ == "azure" else []
    if format_ == "burstgpt":
        found = [b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"]
    for number, at in enumerate(times):
        prompt, output = 100 + number % 900, 10 + number % 90
        if format_ == "azure":
            moment = str(start + np.timedelta64(int(at * 1e6), "us")).replace("T", " ")
            found.append(f"{moment},{prompt},{output}".encode())
        elif format_ == "burstgpt":
            found.append(f"{at:.3f},GPT,{prompt},{output},{prompt + output},API log".encode())
        elif format_ == "mooncake":
            entry = {"timestamp": int(at * 1e3), "input_length": prompt, "output_length": output}
            found.append(json.dumps(entry).encode())
        else:
            usage = {"prompt_tokens": prompt, "completion_tokens": output}
            found.append(json.dumps({"created": 1.7e9 + at, "usage": usage}).encode())
    return found


def damage(line: bytes, how: int, random: np.random.Generator) -> bytes:
    at = int(random.integers(len(line)))
    if how == 0:
        return line[:at]
    if how == 1:
        return line[:at] + bytes(random.choice(list(JUNK), 5).astype(np.uint8)) + line[at:]
    if how == 2:
        return line[:at] + bytes([int(random.choice(list(JUNK)))]) + line[at + 1 :]
    if how == 3:
        return line + line[at:]
    if how == 4:
        return bytes(random.choice(list(JUNK), 30).astype(np.uint8))
    return line[at:]


def damaged_trace(format_: str, n: int, share: float, seed: int) -> tuple[bytes, np.ndarray, int]:
    """The file, the times of its undamaged requests, and how many lines are damaged."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(0.5, n))
    lines = lines_of(format_, times)
    header = len(lines) - n
    chosen = np.flatnonzero(random.random(n) < share)
    for row in chosen:
        lines[header + row] = damage(lines[header + row], int(random.integers(6)), random)
    kept = np.delete(times, chosen)
    return b"\n".join(lines) + b"\n", kept, len(chosen)


def require_honest(path, content: bytes, kept: np.ndarray, damaged: int, **section) -> bool:
    """A clear error (False), or the undamaged requests and at most the damaged ones (True)."""
    path.write_bytes(content)
    try:
        trace = read_trace(path, ProfileLoad(**section), path.with_suffix(".parquet"))
    except ConfigError as error:
        assert error.got and error.allowed and error.next_step
        return False
    found = trace.store.frame()["start_s"].to_numpy()
    assert (np.diff(found) >= 0).all()
    # A damaged line may still be a request: a digit more or less in a length, or near its time.
    assert len(kept) - 20 <= len(found) <= len(kept) + damaged
    rate, true = (len(found) - 1) / found[-1], (len(kept) - 1) / (kept[-1] - kept[0])
    assert rate == pytest.approx(true, rel=0.02 + 2 * damaged / len(kept))
    left_out = len(kept) + damaged - len(found)
    if left_out > 2:
        assert any("left out" in note for note in trace.notes)
    return True


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    format_=st.sampled_from(FORMATS),
    share=st.sampled_from([0.003, 0.02, 0.1]),
    seed=st.integers(0, 10**6),
)
def test_a_damaged_trace_is_refused_or_read_honestly(tmp_path, format_, share, seed):
    content, kept, damaged = damaged_trace(format_, 600, share, seed)
    require_honest(tmp_path / "trace", content, kept, damaged, max_bad_share=0.5)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=400), start=st.sampled_from([b"", b"{", b"a,b\n", b"PAR1"]))
def test_any_bytes_are_refused_or_read(tmp_path, content, start):
    path = tmp_path / "bytes"
    path.write_bytes(start + content)
    try:
        read_trace(path, ProfileLoad(**ANY), tmp_path / "s.parquet")
    except ConfigError as error:
        assert error.got and error.next_step


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["usage", "timestamp", "created", "prompt_tokens", "response",
                                 "completion_tokens", "input_length", "output_length", "error",
                                 "status", "hash_ids", "class"]),
                inner,
                max_size=5,
            ),
            max_leaves=12,
        ),
        min_size=1,
        max_size=8,
    )
)  # fmt: skip
@example([{"timestamp": []}, {"usage": None, "timestamp": None, "input_length": None}])
@example([{"timestamp": 1, "input_length": [], "output_length": {}}])
@example([{"input_length": None}, {"class": [], "timestamp": None, "output_length": None}])
def test_any_json_is_refused_or_read(tmp_path, entries):
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    try:
        read_trace(path, ProfileLoad(**ANY), tmp_path / "s.parquet")
    except ConfigError as error:
        assert error.got and error.next_step


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_ten_thousand_damaged_lines_of_a_million(tmp_path, format_):
    content, kept, damaged = damaged_trace(format_, 1_000_000, 0.01, 1)
    assert damaged == pytest.approx(10_000, rel=0.1)
    path = tmp_path / "trace"
    assert require_honest(path, content, kept, damaged, max_bad_share=0.02)
