"""Widgets without a browser: what a choice shows, what is kept of it, what events say."""

from __future__ import annotations

import http.server
import json
import threading
import time

import pytest

from workbench.errors import ConfigError
from workbench.figures import hybrid_plan, measure_ab, profile_load, train_qat
from workbench.pilot.resolve import resolve
from workbench.report.gates import recorded_results
from workbench.widgets import show
from workbench.widgets.choices import choices
from workbench.widgets.gate_limits import GateLimits
from workbench.widgets.live import WatchedTraining, stop_and_keep
from workbench.widgets.prompt_box import arms_at, ask, side_by_side
from workbench.widgets.view import View, filtered


@pytest.fixture(scope="module")
def records(shared_run):
    return shared_run.records()


def test_without_a_reader_a_figure_is_as_its_module_draws_it(records) -> None:
    record = records["measure_ab"]
    assert show(measure_ab.speed, record) == measure_ab.speed(record)


def test_a_choice_leaves_out_the_others(records) -> None:
    record = records["measure_ab"]
    drawn = show(measure_ab.speed, record, arms=["ternary"], intervals=False)
    (trace,) = drawn.data
    assert trace.name == "ternary" and not trace.error_x.visible
    kept = filtered(record, classes=["interactive_1"])
    assert {m.labels.get("class", "interactive_1") for m in kept.metrics} == {"interactive_1"}
    assert len(record.metrics) > len(kept.metrics), "the record itself is whole"


@pytest.mark.parametrize(
    ("draw", "stage", "names"),
    [
        (measure_ab.speed, "measure_ab", ["arms", "classes", "intervals"]),
        (profile_load.rate, "profile_load", ["within_s", "classes"]),
        (train_qat.histograms, "train_qat", ["layer", "step"]),
        (hybrid_plan.front, "hybrid_plan", ["max_quality_loss"]),
    ],
)
def test_what_a_figure_offers(records, draw, stage, names) -> None:
    view = View(draw, records[stage], "en", {})
    assert [choice.name for choice in choices(view.name, records[stage])] == names
    for choice in choices(view.name, records[stage]):
        assert choice.value(choice.widget(None).value) is None or choice.name == "max_quality_loss"


@pytest.mark.parametrize(
    ("draw", "chosen"),
    [
        (profile_load.rate, {"within_s": [0, 600]}),
        (profile_load.lengths, {"within_s": [0, 60], "classes": ["interactive"]}),
        (measure_ab.quality, {"arms": ["full_precision", "ternary"], "intervals": False}),
        (hybrid_plan.front, {"max_quality_loss": 0.05}),
    ],
)
def test_what_is_written_down_can_be_pasted(shared_run, draw, chosen) -> None:
    """The call draws the same figure again, and the pilot takes its ``--set``."""
    import shlex

    stage = "hybrid_plan" if draw is hybrid_plan.front else draw.__module__.rpartition(".")[2]
    record = shared_run.record(stage)
    view = View(draw, record, "en", chosen)
    call, *fields = view.text(choices(view.name, record)).split("\n")
    figures = type("figures", (), {draw.__name__: staticmethod(draw)})
    again = eval(call, {"show": show, "figures": figures, "record": record})
    assert again.to_json() == view.drawn().to_json()
    sets = [word for line in fields for word in shlex.split(line) if word != "--set"]
    assert sets or "within_s" not in chosen
    assert resolve(shared_run.folder / "pilot.yaml", sets)


def test_histograms_of_one_layer_at_one_step(records) -> None:
    record = records["train_qat"]
    rows = record.table("histograms")
    layer, step = rows["layer"].iloc[0], int(rows["step"].max())
    (trace,) = train_qat.histograms(record, layer=layer, step=step).data
    assert str(step) in trace.name


def test_a_dropdown_shows_what_is_chosen(records) -> None:
    layer, step = choices("train_qat.histograms", records["train_qat"])
    assert layer.widget(None).label == "all" and step.value(step.widget(None).value) is None
    last = int(records["train_qat"].table("histograms")["step"].max())
    assert step.widget(last).value == last


def test_the_budget_moves_along_the_front(shared_run) -> None:
    record = shared_run.record("hybrid_plan")
    plans = record.table("front")
    (choice,) = choices("hybrid_plan_front.front", record)
    stops = choice.widget(None).options
    assert len(stops) == len(plans), "a stop for each plan of the front"
    for stop in stops:
        star = hybrid_plan.front(record, max_quality_loss=stop).data[-1]
        least = plans.loc[plans["quality_loss"] <= stop, "size_ratio"].min()
        assert star.x[0] == pytest.approx(least)
    star = hybrid_plan.front(record, max_quality_loss=stops[-1]).data[-1]
    assert star.name == f"within the budget: {plans['ternary'].max()} ternary"
    assert len(hybrid_plan.front(record, max_quality_loss=-1.0).data) == 1, "no star"


def test_a_plan_that_came_first_has_a_budget_of_size(make_run) -> None:
    record = make_run().record("hybrid_plan")
    record.facts["base"] = "trained"
    plans = record.table("front")
    (choice,) = choices("hybrid_plan_front.front", record)
    assert choice.name == "max_size_ratio"
    stop = choice.widget(None).options[2]
    assert choice.pilot(stop) == [f"--set hybrid_plan.max_size_ratio={stop:g}"]
    drawn = hybrid_plan.front(record, max_size_ratio=stop)
    least = plans.loc[plans["size_ratio"] <= stop, "quality_loss"].min()
    assert drawn.data[-1].y[0] == pytest.approx(least), "losses before training, as they are"
    assert drawn.data[0].name == "predicted, before its training"


def test_limits_are_judged_again_in_a_blink(shared_run) -> None:
    judged = GateLimits(shared_run)
    decision, results = judged.judged()
    report = shared_run.record("report")
    assert decision == report.facts["verdict"]["decision"]
    assert [r.outcome for r in results] == [r.outcome for r in recorded_results(report)]
    assert judged.text().startswith("#")
    place = next(k for k, gate in enumerate(judged.gates) if gate.metric == "decode_speedup")
    judged.move(place, 1000.0)
    lines = judged.lines()
    assert min(_seconds(judged) for _ in range(5)) < 0.1
    assert lines[0] == "No go" and "at least 1,000" in "\n".join(lines)


def _seconds(judged: GateLimits) -> float:
    began = time.perf_counter()
    judged.lines()
    return time.perf_counter() - began


def test_the_limits_as_text_judge_the_run_again(shared_run) -> None:
    import shlex

    judged = GateLimits(shared_run)
    judged.move(0, 7.0)
    words = shlex.split(judged.text())
    assert words[:3] == ["workbench", "report", shared_run.name]
    again = resolve(shared_run.folder / "pilot.yaml", [words[4]]).pilot.report.gates
    assert again[0].at_most == 7.0 and len(again) == len(judged.gates)


def event(kind: str, **fields):
    return {"time": time.time(), "stage": "train_qat", "kind": kind, **fields}


def step(arm: str, done: int, loss: float):
    return event("step", task=f"train {arm}", done=done, total=9, unit="steps", loss=loss,
                 rate_per_s=2.0, left_s=4.0)  # fmt: skip


def test_a_training_is_read_from_its_events() -> None:
    import os

    training = WatchedTraining()
    for each in (
        event("started", key="k", pid=os.getpid()), step("full_precision", 1, 7.0),
        step("full_precision", 2, 6.5), step("ternary", 1, 7.1),
        event("note", text="", flip_rate=0.02),
    ):  # fmt: skip
        training.take(each)
    assert training.losses["full_precision"] == ([1, 2], [7.0, 6.5])
    line = training.line()
    for said in ("ternary 1/9", "2 steps/s", "4 s left", "loss 7.100", "2 %", "GB"):
        assert said in line, line
    assert training.at_work() and len(training.figure().data) == 2
    # Gone on from a checkpoint: what is repeated replaces what was, and the rest stays.
    training.take(event("failed", text="interrupted"))
    assert training.over and not training.at_work()
    training.take(event("started", key="k", pid=os.getpid()))
    training.take(step("full_precision", 2, 6.4))
    assert training.losses["full_precision"] == ([1, 2], [7.0, 6.4])
    training.take(event("started", key="other", pid=1))
    assert training.losses == {}


def test_a_process_of_that_number_that_came_later_is_not_it() -> None:
    import os

    training = WatchedTraining()
    training.take({**event("started", key="k", pid=os.getpid()), "time": 1.0})
    assert not training.at_work()
    training.take(event("finished"))
    assert stop_and_keep(training) == "nobody is at work"


class Server(http.server.BaseHTTPRequestHandler):
    """Two arms; one answers in three pieces, the other refuses."""

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "full_precision"}, {"id": "hybrid"}]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["model"] == "hybrid":
            return self.send_error(503)
        pieces = [f"data: {json.dumps({'choices': [{'text': t}]})}\n\n" for t in ("a", "<b>", "c")]
        self._send("".join([*pieces, "data: [DONE]\n\n"]))

    def _send(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *parts: object) -> None:
        pass


@pytest.fixture
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_answers_stream_side_by_side(address) -> None:
    heard: list[str] = []
    arms = arms_at(address)
    assert arms == ["full_precision", "hybrid"]
    answers = [ask(address, arm, "x", 3, lambda a: heard.append(a.text)) for arm in arms]
    assert answers[0].text == "a<b>c" and answers[0].pieces == 3 and answers[0].first_s
    assert heard[:3] == ["a", "a<b>", "a<b>c"]
    assert answers[1].error.startswith("503")
    html = side_by_side(answers)
    assert "a&lt;b&gt;c" in html and "503" in html and "full precision" in html


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/v1", "nonsense", "ftp://a/b"])
def test_an_address_without_a_server_is_an_error_in_words(address) -> None:
    with pytest.raises(ConfigError, match="workbench serve"):
        arms_at(address)
