"""The path to llama.cpp: an exported file, answered by two of its servers behind our router."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from workbench.data.tokenizer import load_tokenizer
from workbench.export.gguf_file import write_gguf
from workbench.serve.process import server_process
from workbench.serve.spec import ServeSpec, UpstreamSpec
from workbench.ternary.packed import load_packed

SERVER = """
import sys, xllamacpp
given = xllamacpp.CommonParams()
given.model.path, given.hostnames, given.port = sys.argv[1], ["127.0.0.1"], 0
given.n_ctx, given.n_parallel, given.cpuparams.n_threads, given.warmup = 512, 8, 1, False
server = xllamacpp.Server(given)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_cpp(file: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(address, process) of a llama.cpp server of this file."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            address = process.stdout.readline().strip()
            assert address.startswith("http://"), "llama.cpp did not start"
            yield address, process
        finally:
            process.kill()


@pytest.mark.slow
def test_two_servers_of_an_exported_file_are_one_arm_and_one_may_be_killed(
    packed: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp, of the extra test, is not installed")
    folder = packed(intermediate_size=512, max_position_embeddings=64)
    model, file = load_packed(folder), tmp_path / "model.gguf"
    write_gguf(model, load_tokenizer(str(folder)), file, "tq2_0", name="small")
    with ExitStack() as stack:
        ours = stack.enter_context(
            server_process(ServeSpec({"ternary": folder}, "ternary", "ternary"), tmp_path / "ours")
        )
        (one, first), (other, _) = (stack.enter_context(llama_cpp(file)) for _ in range(2))
        upstreams = {
            "ours": UpstreamSpec(ours.address, health_s=0.2),
            "llama": UpstreamSpec(one, health_s=0.2, others=(other,)),
        }
        front = stack.enter_context(
            server_process(
                ServeSpec({}, "ours", "llama", slots=64, upstreams=upstreams), tmp_path / "front"
            )
        )
        client = stack.enter_context(httpx.Client(base_url=front.address, timeout=60))

        def ask(number: int) -> httpx.Response:
            body = {"prompt": f"the story {number}", "max_tokens": 8, "temperature": 0,
                    "ignore_eos": True}  # fmt: skip
            return client.post("/v1/completions", json=body)

        answer = ask(0)
        assert answer.status_code == 200 and answer.headers["x-workbench-arm"] == "llama"
        assert answer.json()["usage"]["completion_tokens"] == 8
        events = client.post(
            "/v1/completions", json={"prompt": "the", "max_tokens": 3, "stream": True}
        ).text.split("\n\n")
        assert "choices" in json.loads(events[0][6:]) and "data: [DONE]" in events
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, number) for number in range(64)]
            first.kill()
            answers = [future.result() for future in asked]
        assert {each.headers.get("x-workbench-arm") for each in answers} == {"llama"}
        # Whole answers only: one that was under way there is asked of the other again.
        assert [each.status_code for each in answers] == [200] * 64
        metrics = client.get("/metrics").text
        assert f'workbench_replica_out{{arm="llama",replica="{one}"}} 1.0' in metrics
        assert f'workbench_replica_out{{arm="llama",replica="{other}"}} 0.0' in metrics
