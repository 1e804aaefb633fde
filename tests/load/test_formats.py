from pathlib import Path

import pytest

from workbench.errors import ConfigError
from workbench.load.formats import read_trace
from workbench.paths import PROJECT

DATA = PROJECT.parent / "shared" / "data"
HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
AZURE = HEADER + (
    b"2023-11-16 18:17:03.9799600,4808,10\r\n"
    b"2023-11-16 18:17:04.0319600,3180,8\r\n"
    b"2023-11-16 18:17:05,110,27"
)
AZURE_WITH_OFFSET = HEADER + (
    b"2024-05-10 02:00:00.009930+02:00,2162,5\n2024-05-10 00:00:00.017335+00:00,2399,6\n"
)
MOONCAKE = (
    b'{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    b'{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": []}\n'
)
BURSTGPT = (
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n"
    b"45,ChatGPT,1087,0,1087,Conversation log\n"
    b"118,GPT-4,417,276,693,API log\n"
)
OPENAI = (
    b'{"created": 1700000000.25, "usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n'
    b'{"timestamp": "2023-11-14T22:13:21Z", "class": "batch",'
    b' "response": {"body": {"usage": {"input_tokens": 12, "output_tokens": 700}}}}\n'
)


def trace_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "trace"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "start_s", "prompt", "output", "classes"),
    [
        (AZURE, [0, 0.052, 1.02004], [4808, 3180, 110], [10, 8, 27], ["", "", ""]),
        (AZURE_WITH_OFFSET, [0, 0.007405], [2162, 2399], [5, 6], ["", ""]),
        (b"\xef\xbb\xbf" + AZURE_WITH_OFFSET, [0, 0.007405], [2162, 2399], [5, 6], ["", ""]),
        (MOONCAKE, [0, 3.053], [6955, 6472], [52, 26], ["", ""]),
        (BURSTGPT, [0, 113], [472, 417], [18, 276], ["", ""]),
        (BURSTGPT.replace(b"\n", b"\r"), [0, 113], [472, 417], [18, 276], ["", ""]),
        (OPENAI, [0, 0.75], [9, 12], [3, 700], ["", "batch"]),
        (OPENAI.replace(b'"batch"', b"null"), [0, 0.75], [9, 12], [3, 700], ["", ""]),
    ],
)
def test_each_format_is_recognised_and_read(tmp_path, content, start_s, prompt, output, classes):
    requests = read_trace(trace_file(tmp_path, content)).requests
    assert requests["start_s"].tolist() == pytest.approx(start_s, abs=1e-6)
    assert requests["prompt_tokens"].tolist() == prompt
    assert requests["output_tokens"].tolist() == output
    assert requests["class"].tolist() == classes


def test_requests_without_tokens_and_coarse_times_are_noted(tmp_path):
    notes = read_trace(trace_file(tmp_path, BURSTGPT)).notes
    assert notes == (
        "left out: 1 of 3 requests, which had no tokens",
        "the trace's times are whole seconds: it says nothing about shorter gaps",
    )


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", "", "is empty"),
        (b"\r\n \r\n", "", "is empty"),
        (HEADER, "", "a header and no requests"),
        (b"\x1f\x8b\x08\x00", "", "not UTF-8"),
        (b"time,tokens\n1,2\n", ":1:", "no known trace format"),
        (b"TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,5\n", ":1:", "no column 'GeneratedTokens'"),
        (AZURE.replace(b"3180", b"many"), ":3:", "ContextTokens is 'many'"),
        (AZURE.replace(b"3180", b""), ":3:", "ContextTokens is ''"),
        (AZURE.replace(b"3180", b"31.5"), ":3:", "ContextTokens is '31.5'"),
        (AZURE.replace(b"3180", b"nan"), ":3:", "ContextTokens is 'nan'"),
        (AZURE.replace(b",8\r", b",-8\r"), ":3:", "GeneratedTokens is '-8'"),
        (AZURE.replace(b",8\r", b",8,9\r"), ":3:", "4 fields"),
        (AZURE.replace(b"18:17:04", b"18:17:03"), ":3:", "goes back by 0.948 s"),
        (AZURE.replace(b"18:17:04", b"25:17:04"), ":3:", "is not a time"),
        (AZURE[:-9], ":4:", "the last line is cut off"),
        (AZURE[:-4] + b"x", ":4:", "the last line is cut off"),
        (MOONCAKE[:-40], ":2:", "the last line is cut off"),
        (MOONCAKE.replace(b"30535", b"null"), ":2:", "timestamp is missing"),
        (MOONCAKE.replace(b"27482", b"-1"), ":1:", "is negative"),
        (MOONCAKE + b"[1, 2]\n", ":3:", "a JSON list"),
        (OPENAI.replace(b"1700000000.25", b"1700000000250"), ":1:", "is not a time"),
        (MOONCAKE + b'{"a": ' * 100_000 + b"\n", ":3:", "not JSON"),
        (b"a" * 200_000 + b",b\n1,2\n", ":1:", "not CSV"),
        (HEADER.replace(b"TIME", b"x" * 200_000 + b",TIME"), ":1:", "not CSV"),
        (HEADER[:-2] + b',"\n' + b"x" * 200_000 + b'"\n', ":2:", "not CSV"),
        (OPENAI.replace(b"2023-11-14T22:13:21Z", b"\\ud800"), ":2:", "is not a time"),
        (OPENAI.replace(b'"batch"', b'"bulk"'), ":2:", "class is 'bulk'"),
        (OPENAI.replace(b'"usage": {"p', b'"used": {"p'), ":1:", "prompt_tokens is missing"),
        (AZURE[: AZURE.index(b"2023-11-16 18:17:04")], "", "1 requests"),
    ],
)
def test_a_bad_trace_is_one_clear_error_with_its_line(tmp_path, content, line, words):
    with pytest.raises(ConfigError) as caught:
        read_trace(trace_file(tmp_path, content))
    assert f"trace{line}" in caught.value.got
    assert words in caught.value.got
    assert caught.value.allowed
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("content", "line", "time", "allowed"),
    [
        (BURSTGPT.replace(b"\n5,", b"\n1700000000250,"), 2, "1700000000250", "not milliseconds"),
        (MOONCAKE.replace(b" 27482", b" 1700000000250000"), 1, "1700000000250000", "not micro"),
        (MOONCAKE.replace(b" 27482", b" 1700000000250000000"), 1, "17000000002500", "nanoseconds"),
        (HEADER + b"1970,5,6\n1975,5,6\n", 2, "1970", "a date and time"),
        (HEADER + b"-1970,5,6\n1975,5,6\n", 2, "-1970", "a date and time"),
        (HEADER + b"2023-11-16 18:17:03,5,6\n9999-12-31 00:00:00,5,6\n", 3, "9999", "a date"),
    ],
)
def test_a_time_in_another_unit_or_out_of_this_world_is_no_time(
    tmp_path, content, line, time, allowed
):
    with pytest.raises(ConfigError, match=f"trace:{line}: .*{time}.* is not a time") as caught:
        read_trace(trace_file(tmp_path, content))
    assert allowed in caught.value.allowed


@pytest.mark.parametrize("date", [b"0001-01-01 00:00:00", b"1600-01-01", b"1969-12-31T23:59:59Z"])
def test_a_date_before_1970_is_negative(tmp_path, date):
    with pytest.raises(ConfigError, match=r"trace:2: TIMESTAMP .* is negative"):
        read_trace(trace_file(tmp_path, HEADER + date + b",5,6\n2023-11-16 18:17:03,5,6\n"))


def test_milliseconds_since_1970_are_mooncake_s_own_unit(tmp_path):
    content = MOONCAKE.replace(b"27482", b"1700000000250").replace(b"30535", b"1700000000500")
    assert read_trace(trace_file(tmp_path, content)).requests["start_s"].tolist() == [0, 0.25]


def test_a_folder_given_as_a_trace_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path)


def test_a_format_that_is_not_the_file_s_names_the_column_it_misses(tmp_path):
    with pytest.raises(ConfigError, match="no column 'Timestamp'"):
        read_trace(trace_file(tmp_path, AZURE), "burstgpt")


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize(
    ("name", "n", "rate", "cv", "prompt", "output"),
    [
        ("azure_llm_2023_code.csv", 8819, 2.57, 13.2, (1469, 7436), (13, 252)),
        ("azure_llm_2023_conv.csv", 19366, 5.53, 1.09, (1020, 4142), (129, 601)),
    ],
)
def test_the_published_traces_have_their_published_figures(name, n, rate, cv, prompt, output):
    from workbench.load.profile import LoadProfile
    from workbench.measure.statistics import quantile

    profile = LoadProfile.of(read_trace(DATA / name), 512)
    assert len(profile.requests) == n
    assert profile.rate_per_s == pytest.approx(rate, abs=0.005)
    assert profile.gap_cv == pytest.approx(cv, rel=0.005)
    for column, (p50, p99) in (("prompt_tokens", prompt), ("output_tokens", output)):
        for q, published in ((0.5, p50), (0.99, p99)):
            estimate = quantile(profile.requests[column], q)
            assert estimate.value == pytest.approx(published, abs=1)
            assert estimate.lo <= estimate.value <= estimate.hi
