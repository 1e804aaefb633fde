"""A prompt box: one prompt, the answers of all arms side by side as they stream, and the route.

It speaks to an OpenAI-compatible address and to nothing else, so it shows what any client of that
address would see: ``workbench serve RUN`` beside the notebook, or a server of your own.
"""

from __future__ import annotations

import http.client
import json
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import urlsplit

from workbench.errors import ConfigError, WorkbenchError
from workbench.records.run import Run, open_folder
from workbench.records.stage_record import StageRecord
from workbench.serve.kept_route import change_route
from workbench.widgets.handles import name_handles
from workbench.widgets.headless import interactive
from workbench.widgets.view import shown_text

ADDRESS = "http://127.0.0.1:8000/v1"
TIMEOUT_S = 120.0


@dataclass
class PromptAnswer:
    """An arm's answer so far. pieces: of the stream; they are tokens where a server sends each."""

    arm: str
    text: str = ""
    pieces: int = 0
    first_s: float | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def rate_per_s(self) -> float | None:
        """Pieces a second after the first one; None before there are two."""
        if self.first_s is None or self.pieces < 2 or self.seconds <= self.first_s:
            return None
        return (self.pieces - 1) / (self.seconds - self.first_s)


def arms_at(address: str) -> list[str]:
    """The models that the server names. Raises ConfigError where none answers."""
    connection, path = _connection(address)
    try:
        connection.request("GET", f"{path}/models")
        found = json.loads(connection.getresponse().read())
        return [str(model["id"]) for model in found["data"]]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        raise ConfigError(
            f"{address}: {type(error).__name__}: {error}",
            allowed="a running OpenAI-compatible server",
            next_step="workbench serve RUN, in a terminal",
        ) from error
    finally:
        connection.close()


def ask(
    address: str, arm: str, prompt: str, max_tokens: int, heard: Callable[[PromptAnswer], None]
) -> PromptAnswer:
    """The answer of one arm, told to ``heard`` after each piece; a fault is its ``error``."""
    answer = PromptAnswer(arm)
    connection, path = _connection(address)
    body = {"model": arm, "prompt": prompt, "max_tokens": max_tokens, "stream": True,
            "temperature": 0}  # fmt: skip
    began = time.perf_counter()
    try:
        head = {"Content-Type": "application/json"}
        connection.request("POST", f"{path}/completions", json.dumps(body), head)
        response = connection.getresponse()
        if response.status != 200:
            answer.error = f"{response.status}: {response.read(2000).decode(errors='replace')}"
            return answer
        for line in response:
            data = line.decode().strip().removeprefix("data:").strip()
            if not data or data == "[DONE]":
                continue
            choices = json.loads(data).get("choices") or []
            if not choices:
                continue
            answer.seconds = time.perf_counter() - began
            answer.first_s = answer.first_s or answer.seconds
            answer.pieces += 1
            answer.text += choices[0].get("text") or ""
            heard(answer)
    except (OSError, ValueError, http.client.HTTPException) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
        heard(answer)
    return answer


def as_curl(address: str, prompt: str, max_tokens: int) -> str:
    """The same question for a shell, to the arm that the route chooses."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return (
        f"curl {shlex.quote(address.rstrip('/') + '/completions')} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    )


def prompt_box(record: StageRecord) -> Any:
    """The box for the run of ``record``; headless, how to come to it."""
    run = open_folder(record.folder.parents[1])
    if not interactive():
        from workbench.figures.html_view import HtmlView

        text = f"workbench serve {run.name}\n# then run this cell in JupyterLab or VS Code"
        return HtmlView(shown_text(text), text)
    PromptBox(run).display()
    return None


class PromptBox:
    """Fields, buttons and a column for each arm."""

    def __init__(self, run: Run) -> None:
        import ipywidgets

        self.run = run
        self.address = ipywidgets.Text(value=ADDRESS, description="address")
        self.prompt = ipywidgets.Textarea(
            value="def fibonacci(n):\n", description="prompt", layout={"width": "40em"}
        )
        self.tokens = ipywidgets.IntSlider(value=48, min=1, max=512, description="tokens")
        self.send = ipywidgets.Button(description="Ask all arms", button_style="primary")
        self.route = ipywidgets.Button(description="Show the route")
        self.back = ipywidgets.Button(description="Roll back", button_style="warning")
        self.said = ipywidgets.HTML()
        self.answers = ipywidgets.HTML()
        self.kept = ipywidgets.HTML()
        self.found: dict[str, PromptAnswer] = {}
        self.send.on_click(self._ask)
        self.route.on_click(lambda _: self._route(False))
        self.back.on_click(lambda _: self._route(True))
        for field in (self.address, self.prompt, self.tokens):
            field.observe(lambda _: self._keep(), names="value")
        self._keep()

    def display(self) -> None:
        import ipywidgets
        from IPython.display import display

        row = ipywidgets.HBox([self.send, self.route, self.back])
        parts = [self.address, self.prompt, self.tokens, row, self.said, self.answers, self.kept]
        shown = ipywidgets.VBox(parts)
        display(shown)
        name_handles(shown)

    def _ask(self, _: Any) -> None:
        try:
            arms = arms_at(self.address.value)
        except ConfigError as error:
            self.said.value = shown_text(str(error))
            return
        self.said.value, self.found = "", {arm: PromptAnswer(arm) for arm in arms}
        for arm in arms:
            details = (self.address.value, arm, self.prompt.value, self.tokens.value, self._heard)
            threading.Thread(target=ask, args=details, daemon=True).start()

    def _heard(self, answer: PromptAnswer) -> None:
        self.found[answer.arm] = answer
        self.answers.value = side_by_side(list(self.found.values()))

    def _route(self, back: bool) -> None:
        try:
            self.said.value = shown_text(change_route(self.run, None, 1.0, back=back, force=False))
        except WorkbenchError as error:
            self.said.value = shown_text(str(error))
        self._keep()

    def _keep(self) -> None:
        self.kept.value = shown_text(
            f"workbench serve {self.run.name}\n"
            f"workbench route {self.run.name} --to hybrid --weight 0.1\n"
            f"workbench route {self.run.name} --back\n"
            + as_curl(self.address.value, self.prompt.value, self.tokens.value)
        )


def side_by_side(answers: list[PromptAnswer]) -> str:
    """A column for each arm: how fast, and what it says."""
    columns = []
    for answer in answers:
        rate = f"{answer.rate_per_s:.1f} tokens/s" if answer.rate_per_s else ""
        first = f"first after {1e3 * answer.first_s:.0f} ms" if answer.first_s else ""
        head = " · ".join(filter(None, (answer.arm.replace("_", " "), first, rate)))
        text = escape(answer.error or answer.text)
        columns.append(
            f'<div style="flex:1 1 16em;min-width:0"><b>{escape(head)}</b>'
            f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere">{text}</pre></div>'
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em">{"".join(columns)}</div>'


def _connection(address: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"address: {address!r}", allowed="http://host:port/v1", next_step="workbench serve RUN"
        )
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=TIMEOUT_S), parts.path.rstrip("/")
