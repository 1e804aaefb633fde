"""Each format is recognised and read; a bad trace is one clear error."""

import gzip
import json

import pandas as pd
import pytest
import zstandard

from workbench.errors import ConfigError
from workbench.load.formats import field_names
from workbench.pilot.sections.profile_load import ProfileLoad

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
BAILIAN = (
    b'{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 3, '
    b'"output_length": 4, "type": "text", "turn": 1, "hash_ids": [1, 2]}\n'
    b'{"chat_id": 2, "parent_chat_id": 1, "timestamp": 2.0, "input_length": 5, '
    b'"output_length": 6, "type": "text", "turn": 2, "hash_ids": [1, 3]}\n'
)
BURSTGPT = (
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n"
    b"45,ChatGPT,1087,0,1087,Conversation log\n"
    b"118,GPT-4,417,276,693,API log\n"
)
BURSTGPT_2 = (
    b"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
    b"Log Type\n"
    b"19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n"
    b"19440161.5,d5983bf9,2,ChatGPT,36,29,65,Conversation log\n"
)
OPENAI = (
    b'{"created": 1700000000.25, "usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n'
    b'{"timestamp": "2023-11-14T22:13:21Z", "class": "batch",'
    b' "response": {"body": {"usage": {"input_tokens": 12, "output_tokens": 700}}}}\n'
)
LITELLM = (
    b'{"startTime": 1700000000.5, "endTime": 1700000002.0, "prompt_tokens": 9, '
    b'"completion_tokens": 3, "status": "success", "response": {"usage": {"total_tokens": 12}}}\n'
    b'{"startTime": 1700000001.0, "endTime": 1700000001.5, "prompt_tokens": 0, '
    b'"completion_tokens": 0, "status": "failure", "response": {}}\n'
    b'{"startTime": 1700000002.0, "endTime": 1700000003.0, "prompt_tokens": 8, '
    b'"completion_tokens": 4, "status": "success", "response": {}}\n'
)
VLLM = b"".join(
    b"INFO 11-28 10:00:%02d [logger.py:41] Received request chatcmpl-%d: prompt: 'hi', params: "
    b"SamplingParams(n=1), prompt_token_ids: [1, 2, 3], lora_request: None.\n"
    b'INFO:     10.0.0.1:5 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    b"INFO 11-28 10:00:%02d [logger.py:71] Generated response chatcmpl-%d (streaming complete): "
    b"output: 'x', output_token_ids: [4, 5], finish_reason: stop\n" % (i, i, i + 1, i)
    for i in range(3)
)


@pytest.mark.parametrize(
    ("content", "format_", "start_s", "prompt", "output"),
    [
        (AZURE, "azure", [0, 0.052, 1.02004], [4808, 3180, 110], [10, 8, 27]),
        (AZURE_WITH_OFFSET, "azure", [0, 0.007405], [2162, 2399], [5, 6]),
        (b"\xef\xbb\xbf" + AZURE_WITH_OFFSET, "azure", [0, 0.007405], [2162, 2399], [5, 6]),
        (b"\r\n" + AZURE.replace(b"\r\n", b"\r\n\r\n"), "azure", [0, 0.052, 1.02004],
         [4808, 3180, 110], [10, 8, 27]),
        (MOONCAKE, "mooncake", [0, 3.053], [6955, 6472], [52, 26]),
        (BAILIAN, "bailian", [0, 1.5], [3, 5], [4, 6]),
        (BURSTGPT, "burstgpt", [0, 113], [472, 417], [18, 276]),
        (BURSTGPT.replace(b"\n", b"\r"), "burstgpt", [0, 113], [472, 417], [18, 276]),
        (BURSTGPT_2, "burstgpt", [0, 51.5], [906, 36], [446, 29]),
        (OPENAI, "openai_jsonl", [0, 0.75], [9, 12], [3, 700]),
        (OPENAI.replace(b'"batch"', b"null"), "openai_jsonl", [0, 0.75], [9, 12], [3, 700]),
        (LITELLM, "openai_jsonl", [0, 1.5], [9, 8], [3, 4]),
        (VLLM, "vllm", [0, 1, 2], [3, 3, 3], [2, 2, 2]),
    ],
)  # fmt: skip
def test_each_format_is_recognised_and_read(read, content, format_, start_s, prompt, output):
    trace = read(content)
    requests = trace.store.frame()
    assert trace.format == format_
    assert requests["start_s"].tolist() == pytest.approx(start_s, abs=1e-6)
    assert requests["prompt_tokens"].tolist() == prompt
    assert requests["output_tokens"].tolist() == output


def test_packed_files_and_parquet_give_the_same_requests(read, tmp_path):
    plain = read(AZURE_WITH_OFFSET)
    wanted = plain.store.frame()
    assert read(gzip.compress(AZURE_WITH_OFFSET)).store.frame().equals(wanted)
    packed = zstandard.compress(AZURE_WITH_OFFSET[:50]) + zstandard.compress(AZURE_WITH_OFFSET[50:])
    assert read(packed).store.frame().equals(wanted)
    table = tmp_path / "t.parquet"
    pd.DataFrame(
        {
            "start_time": pd.to_datetime(
                ["2024-05-10 00:00:00.009930", "2024-05-10 00:00:00.017335"], utc=True
            ),
            "input_tokens": [2162, 2399],
            "output_tokens": [5, 6],
        }
    ).to_parquet(table)
    found = read(table).store.frame()
    assert found["start_s"].tolist() == pytest.approx(wanted["start_s"].tolist())
    assert found["prompt_tokens"].tolist() == [2162, 2399]


def test_classes_are_the_trace_s_else_told_by_length(read):
    lines = [
        {"timestamp": at, "input_length": 5, "output_length": out, "class": said}
        for at, out, said in ((0, 10, ""), (1, 513, None), (2, 513, "interactive"), (3, 9, "BATCH"),
                              (4, 9, "urgent"))
    ]  # fmt: skip
    trace = read("".join(json.dumps(line) + "\n" for line in lines).encode())
    assert trace.store.frame()["class"].tolist() == [
        *("interactive", "batch", "interactive", "batch", "interactive")
    ]
    assert any("'urgent': 1" in note for note in trace.notes)


def test_requests_without_tokens_and_coarse_times_are_noted(read):
    notes = read(BURSTGPT).notes
    assert notes == (
        "left out: 1 of 3 requests, which had no prompt or no output tokens",
        "the trace's times are whole seconds: it says nothing about shorter gaps",
    )


def test_an_access_log_is_read_by_a_pattern_and_other_lines_are_passed_over(read):
    log = b"".join(
        b'10.0.0.1 - - [28/Nov/2026:10:00:%02d +0100] "POST /v1/chat HTTP/1.1" %d in=%d out=7\n'
        b"GET /health\n" % (i, 503 if i == 4 else 200, i + 5)
        for i in range(9)
    )
    pattern = (
        r'\[(?P<time>[^\]]+)\] "POST .*" (?P<status>\d+) in=(?P<prompt>\d+) out=(?P<output>\d+)'
    )
    trace = read(log, pattern=pattern)
    assert trace.store.frame()["prompt_tokens"].tolist() == [5, 6, 7, 8, 10, 11, 12, 13]
    assert trace.origin_s == pd.Timestamp("2026-11-28 09:00:00Z").timestamp()
    assert trace.failed == {"status 503": 1}
    assert any("9 lines do not fit the pattern" in note for note in trace.notes)
    with pytest.raises(ConfigError, match="18 lines, and none fits"):
        read(log, pattern=r"(?P<time>x)(?P<prompt>y)(?P<output>z)")


def test_servegen_s_windows_are_drawn_from(tmp_path):
    from workbench.load.servegen import read_servegen
    from workbench.pilot.sections.profile_load import ProfileLoad

    (tmp_path / "chunk-0-trace.csv").write_text(
        "0,2.0,1.5,Gamma,0.4,1.1\n600,0,0,,,\n1200,4.0,1,,,\n"
    )
    lengths = {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{5: 1.0}"}
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps({"0": lengths, "21600": {}}))
    with pytest.raises(ConfigError, match=r"dataset.json:1: .*input_tokens"):
        read_servegen(tmp_path, ProfileLoad(), 1, tmp_path / "s.parquet")
    (tmp_path / "chunk-0-dataset.json").write_text(json.dumps({"0": lengths}))
    trace = read_servegen(tmp_path, ProfileLoad(), 1, tmp_path / "s.parquet")
    found = trace.store.frame()
    assert trace.kind == "modelled"
    counts = [((found["start_s"] // 600) == window).sum() for window in range(3)]
    assert counts[0] == pytest.approx(1200, rel=0.2)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(2400, rel=0.1)
    assert set(found["prompt_tokens"]) == {10, 20}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", "", "is empty"),
        (b"\r\n \r\n", "", "is empty"),
        (HEADER, "", "a header and no requests"),
        (b"\x1f\x8b\x08\x00", "", "cut off"),
        (gzip.compress(AZURE)[:-3], "", "cut off"),
        (zstandard.compress(AZURE)[:-3], "", "cut off"),
        (b"PAR1\x00\x00", "", "damaged"),
        (AZURE.decode().encode("utf-16"), "", "UTF-16"),
        (b"time,tokens\n1,2\n", ":1:", "no known trace format"),
        (b"TIMESTAMP,TIMESTAMP,ContextTokens\n", ":1:", "more than one column"),
        (b"TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,5\n", ":1:", "no column 'GeneratedTokens'"),
        (b"[" + MOONCAKE[:-1] + b"]", ":1:", "a JSON list"),
        (b'{"a": 1}\n', ":1:", "no known trace format"),
        (AZURE.replace(b"3180", b"many"), ":3:", "ContextTokens is 'many'"),
        (AZURE.replace(b"3180", b""), ":3:", "ContextTokens is ''"),
        (AZURE.replace(b"3180", b"31.5"), ":3:", "ContextTokens is '31.5'"),
        (AZURE.replace(b"3180", b"nan"), ":3:", "ContextTokens is 'nan'"),
        (AZURE.replace(b",8\r", b",-8\r"), ":3:", "GeneratedTokens is '-8'"),
        (AZURE.replace(b",8\r", b",8,9\r"), ":3:", "4 fields"),
        (AZURE.replace(b",8\r", b',"8\r'), ":3:", "a quote is not closed"),
        (AZURE.replace(b"18:17:04", b"18:10:04"), ":3:", "goes back by 419.948 s"),
        (AZURE.replace(b"18:17:04", b"25:17:04"), ":3:", "is not a time"),
        (AZURE[:-9], ":4:", "the last line is cut off"),
        (AZURE[:-4] + b"x", ":4:", "the last line is cut off"),
        (MOONCAKE[:-40], ":2:", "the last line is cut off"),
        (MOONCAKE.replace(b"30535", b"null"), ":2:", "missing"),
        (MOONCAKE.replace(b"27482", b"-1"), ":1:", "is negative"),
        (MOONCAKE + b"[1, 2]\n", ":3:", "not JSON"),
        (MOONCAKE + b'{"a": ' * 100_000 + b"\n", ":3:", "not JSON"),
        (b"a" * 200_000 + b",b\n1,2\n", ":1:", "not CSV"),
        (HEADER.replace(b"TIME", b"x" * 200_000 + b",TIME"), ":1:", "not CSV"),
        (OPENAI.replace(b"2023-11-14T22:13:21Z", b"\\ud800"), ":2:", "is not a time"),
        (HEADER + b"1970,5,6\n1975,5,6\n", ":2:", "is not a time"),
        (HEADER + b"-1970,5,6\n1975,5,6\n", ":2:", "is not a time"),
        (HEADER + b"2023-11-16 18:17:03,5,6\n9999-12-31 00:00:00,5,6\n", ":3:", "9999"),
        (HEADER + b"0001-01-01 00:00:00,5,6\n2023-11-16 18:17:03,5,6\n", ":2:", "is not a time"),
        (AZURE[: AZURE.index(b"2023-11-16 18:17:04")], "", "1 request"),
        (VLLM.replace(b"output_token_ids", b"x"), "", "no answers"),
    ],
)
def test_a_bad_trace_is_one_clear_error_with_its_line(read, content, line, words):
    with pytest.raises(ConfigError) as caught:
        read(content)
    assert f"trace{line}" in caught.value.got
    assert words in caught.value.got
    assert caught.value.allowed
    assert caught.value.next_step


def test_bad_lines_are_counted_by_kind_and_shown_up_to_a_share(read):
    good = [b"2023-11-16 18:17:%02d.5,100,10" % (i % 60) for i in range(60)]
    lines = [*good[:20], b"2023-11-16 18:17:19.9,many,10", b"?,5,6", *good[20:], b"1,2"]
    content = HEADER + b"\n".join(lines) + b"\n"
    trace = read(content, max_bad_share=0.05)
    assert len(trace.store.frame()) == 60
    (note,) = [note for note in trace.notes if "cannot be read" in note]
    assert "3 of 63 lines" in note
    assert "ContextTokens is no number of tokens: 1, first line 22" in note
    assert "TIMESTAMP is not a time: 1, first line 23" in note
    assert "another number of fields: 1, first line 64" in note
    with pytest.raises(ConfigError, match="3 of 63 lines cannot be read"):
        read(content, max_bad_share=0.04)


def test_a_folder_given_as_a_trace_is_a_clear_error(read, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)


def test_a_format_that_is_not_the_file_s_names_the_column_it_misses(read):
    with pytest.raises(ConfigError, match="no column 'Timestamp'"):
        read(AZURE, format="burstgpt")


def test_a_declared_column_that_is_not_there_is_named(read):
    with pytest.raises(ConfigError, match="no field 'ContextToken' for prompt"):
        read(AZURE, columns={"time": "TIMESTAMP", "prompt": "ContextToken", "output": "a"})


def test_a_column_that_is_taken_is_not_advised(read):
    trace = b"ts,in_tok,out_tok\n1,2,3\n"
    columns = {"time": "ts", "prompt": "in_tok", "output": "n_tok"}
    with pytest.raises(ConfigError) as caught:
        read(trace, columns=columns)
    said = str(caught.value)
    assert "no field 'n_tok' for output; did you mean out_tok?" in said
    assert said.count("allowed: ") == said.count("next: ") == 1


def test_the_fields_of_a_table_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"ts;in;out\n1;2;3\n")
    (tmp_path / "a.jsonl").write_bytes(b'{"at": 1, "usage": {"in": 2}}\n')
    assert field_names(tmp_path / "a.csv", ProfileLoad()) == ["ts", "in", "out"]
    assert field_names(tmp_path / "a.jsonl", ProfileLoad()) == ["at", "usage", "usage.in"]
    assert field_names(tmp_path, ProfileLoad()) == []


def test_prefixes_and_the_cache_s_tokens_are_counted(read):
    assert read(BAILIAN).prefix_reuse == 0.25
    beside = b'{"created": 1, "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 5}}\n'  # noqa: E501
    within = b'{"created": 2, "usage": {"prompt_tokens": 95, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 90}}}\n'  # noqa: E501
    trace = read(beside + within)
    assert trace.store.frame()["prompt_tokens"].tolist() == [100, 95]
    left_out = within.replace(b"95", b"5")
    both = read(left_out + left_out.replace(b'"created": 2', b'"created": 3'))
    assert both.store.frame()["prompt_tokens"].tolist() == [95, 95]
    assert any("2 prompts had tokens from a cache" in note for note in both.notes)
