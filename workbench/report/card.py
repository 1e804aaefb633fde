"""The verdict card: what was decided, gate by gate, and what to do next, in one glance.

The same card opens notebook 06, stands at the top of the report and ends what ``workbench run``
says on the terminal. All of it is read from records: the sentence from the verdict and the speed
probe, a light from each gate, the noise from what the stages saw of other work on the machine. A
run that has not reached its last stage is unfinished, which is not the same as undecided: its
gates are held against what there is so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from workbench.pilot.sections.base import said_in
from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.report.forecast import forecast_lines
from workbench.report.gates import GateResult, evaluate, recorded_results
from workbench.report.next_steps import NextStep, next_steps
from workbench.report.plotly_page import templates
from workbench.roadmap import STAGES
from workbench.wording.labels import label_text
from workbench.wording.numbers import number, with_interval
from workbench.wording.text import Texts

State = Literal["go", "no go", "inconclusive", "unfinished"]
Colour = Literal["pass", "fail", "inconclusive", "not measured"]
FIRST: tuple[Colour, ...] = ("fail", "inconclusive", "not measured", "pass")
"""Of the lights those come first that the decision hangs on."""
NOISES = (("readiness", "noise"), ("measure_ab", "noise"), ("measure_ab", "load_noise"))
"""Stage and fact where the blocks that other work disturbed are counted."""
ON_THE_CARD = ("caveat.taught",)
"""The arms learned from different objectives: their gap compares more than the weights."""
MARKS = {"pass": "●", "fail": "■", "inconclusive": "◐", "not measured": "○"}
"""One sign for one outcome, readable without a colour."""


@dataclass(frozen=True)
class Light:
    """One gate. outcome_name, title, of, detail: in words; must: whether a run stops by it."""

    outcome: Colour
    outcome_name: str
    title: str
    of: str
    detail: str
    must: bool

    @property
    def mark(self) -> str:
        return MARKS[self.outcome]


@dataclass(frozen=True)
class NoiseBadge:
    """What else the machine did. level: quiet, busy or unknown."""

    level: Literal["quiet", "busy", "unknown"]
    text: str


@dataclass(frozen=True)
class VerdictCard:
    """state_name, question, sentence and everything below: in the language asked for. forecast:
    what more training would bring, nothing where the quality gate holds. caveats: those that the
    sentence itself hangs on."""

    state: State
    state_name: str
    question: str
    sentence: str
    lights: list[Light]
    steps: list[NextStep]
    noise: NoiseBadge
    forecast: list[str]
    caveats: list[str]


def verdict_card(run: Run, texts: Texts, again: StageRecord | None = None) -> VerdictCard:
    """The card of a run, in the language of ``texts``.

    again: a later judgement of the run, which then counts instead of the first one.
    """
    records = run.records()
    if again:
        records["report"] = again
    report = records.get("report")
    pilot = run.resolved().pilot
    words = again.facts["second_judgement"]["words"] if again else {}
    results = recorded_results(report) if report else evaluate(pilot.report.gates, records)
    state: State = report.facts["verdict"]["decision"] if report else "unfinished"
    return VerdictCard(
        state=state,
        state_name=texts.get(f"decision.{state}", state),
        question=said_in(words.get("question", pilot.question), texts.language),
        sentence=_sentence(state, records, results, pilot, texts),
        lights=sorted(
            (_light(result, texts, results) for result in results),
            key=lambda light: FIRST.index(light.outcome),
        ),
        steps=next_steps(run, state, records, results, texts),
        noise=_noise(records, texts),
        forecast=forecast_lines(report, texts) if report else [],
        caveats=_caveats(report, texts) if report else [],
    )


def card_lines(card: VerdictCard, texts: Texts) -> list[str]:
    """The card for a terminal: plain lines, the commands last."""
    wide = max((len(light.outcome_name) for light in card.lights), default=0)
    lines = ["", card.sentence, ""]
    lines += [
        f"  {light.mark} {light.outcome_name:{wide}}  {_named(light)}: {light.detail}"
        for light in card.lights
    ]
    for said in (*card.forecast, *card.caveats):
        lines += ["", said]
    lines += ["" if card.lights else texts("card.no_gates"), f"{texts('card.next')}:"]
    for place, step in enumerate(card.steps, start=1):
        lines += [f"  {place}. {step.text}", f"     {step.command}"]
    return [*lines, f"{texts('card.noise')}: {_level(card, texts)}, {card.noise.text}"]


def card_html(card: VerdictCard, texts: Texts) -> Markup:
    """The card as HTML with its own styles, for a notebook; follows a dark or light Lab."""
    return Markup(templates().get_template("card.html").render(card=card, t=texts, alone=True))


def _caveats(report: StageRecord, texts: Texts) -> list[str]:
    """Of the verdict's caveats those without which its first sentence misleads."""
    return [
        texts(caveat["code"], **caveat["values"])
        for caveat in report.facts["verdict"]["caveats"]
        if caveat["code"] in ON_THE_CARD
    ]


def _level(card: VerdictCard, texts: Texts) -> str:
    level = card.noise.level
    return texts("card.noise.unknown_level" if level == "unknown" else f"card.noise.{level}")


def _named(light: Light) -> str:
    return f"{light.title} ({light.of})" if light.of else light.title


def _sentence(
    state: State,
    records: Mapping[str, StageRecord],
    results: Sequence[GateResult],
    pilot: Pilot,
    texts: Texts,
) -> str:
    """One plain sentence: what was gained, and what decides."""
    if state == "unfinished":
        ahead = [name for name in STAGES if name not in records]
        next_stage = texts(f"stage.{ahead[0]}") if ahead else ""
        done = len(STAGES) - len(ahead)
        return texts("card.unfinished", done=done, all=len(STAGES), next=next_stage)
    why = _why(state, records, results, pilot, texts)
    return texts(f"card.{state}", gain=_gain(records, texts), why=why)


def _gain(records: Mapping[str, StageRecord], texts: Texts) -> str:
    """What ternary gains in memory and decoding over full precision, at the probe's shape or, with
    no probe, of the trained model."""
    memory = _figure(records, "readiness", "memory_ratio", source="probe", arm="ternary")
    speed = _figure(records, "readiness", "decode_speedup", source="probe")
    probed = memory or speed
    shape = probed.labels.get("shape", "") if probed else ""
    if probed is None:
        memory = _figure(records, "measure_ab", "memory_ratio", source="trained", arm="ternary")
        shape = texts("card.trained_model")
    if memory is None and speed is None:
        return texts("card.gain.none")
    values: dict[str, Any] = {"shape": shape}
    values |= {"memory": memory.value} if memory else {}
    values |= {"speed": speed.value} if speed else {}
    if speed is None:
        return texts("card.gain.memory", **values)
    faster = "faster" if (speed.lo or 0.0) > 1 else "slower" if _below_one(speed) else "no_faster"
    faster = "unsure" if speed.lo is None and speed.hi is None else faster
    return texts(f"card.gain.{faster}" if memory else f"card.gain.{faster}_only", **values)


def _below_one(speed: Metric) -> bool:
    return speed.hi is not None and speed.hi < 1


def _why(
    state: State,
    records: Mapping[str, StageRecord],
    results: Sequence[GateResult],
    pilot: Pilot,
    texts: Texts,
) -> str:
    """What decided: the first gate that fails or is open, those that must hold before others."""
    if not results:
        return texts("card.why.no_gates")
    if state == "go":
        trained = _figure(records, "train_qat", "training_tokens")
        if trained is None:
            return texts("card.why.held", all=len(results))
        model = str(pilot.model.checkpoint or pilot.model.preset)
        return texts("card.why.held_for", all=len(results), model=model, tokens=trained.value)
    surely = [r for r in results if r.outcome == "fail" and (state != "no go" or not r.chance)]
    doubtful = [r for r in results if r.outcome == "inconclusive"]
    first, more = min(surely or doubtful, key=lambda r: r.on_fail != "stop"), len(doubtful) - 1
    figure = {"name": first.metric, "labels": _told(first)}
    values: dict[str, Any] = {"figure": figure, "value": first.value, "limit": first.limit}
    values["unit"] = texts.unit(first.unit)
    if first.outcome == "fail":
        chance = "by_chance." if first.chance else ""
        return texts(f"card.why.failed.{chance}{first.side}", **values)
    return texts(_why_open(first), **values) + (texts("card.why.more", more=more) if more else "")


def _why_open(result: GateResult) -> str:
    if result.value is None:
        return "card.why.unmeasured"
    if result.effect is not None:
        return "card.why.noisy"
    if result.metric.startswith("quality_gap"):
        return "card.why.quality"
    return "card.why.no_interval" if result.decider is None else "card.why.open"


def _told(result: GateResult) -> dict[str, str]:
    """The labels without what the card's subject says already."""
    return {k: v for k, v in result.labels.items() if k not in ("arm", "source", "shape")}


def _figure(
    records: Mapping[str, StageRecord], stage: str, name: str, **labels: str
) -> Metric | None:
    found = records[stage].metric(name, **labels) if stage in records else None
    return found if found and found.value is not None else None


def _light(result: GateResult, texts: Texts, beside: Sequence[GateResult]) -> Light:
    """beside: all results; where another has the same name, one without labels says its stage."""
    outcome: Colour = "not measured" if result.value is None else result.outcome
    rule = texts(f"page.{result.side}", limit=result.limit)
    if result.value is None:
        detail = rule
    else:
        value, interval = with_interval(result.value, result.lo, result.hi, texts.language)
        got = " ".join(filter(None, (value, texts.unit(result.unit), interval)))
        if result.decided_by == "value" and result.reason_code == "none_of_n":
            got = texts("reason.none_of_n", n=result.n)
        detail = f"{got}; {rule}"
    return Light(
        outcome=outcome,
        outcome_name=texts(f"light.{outcome}"),
        title=texts.metric(result.metric),
        of=texts.labels(result.labels) or _stage_of_namesake(result, texts, beside),
        detail=detail,
        must=result.on_fail == "stop",
    )


def _stage_of_namesake(result: GateResult, texts: Texts, beside: Sequence[GateResult]) -> str:
    namesakes = sum(other.metric == result.metric for other in beside)
    return texts(f"stage.{result.stage}") if namesakes > 1 and result.stage else ""


def _noise(records: Mapping[str, StageRecord], texts: Texts) -> NoiseBadge:
    seen = [records[stage].facts.get(fact) for stage, fact in NOISES if stage in records]
    known = [noise for noise in seen if noise and noise.get("blocks")]
    if not known:
        return NoiseBadge("unknown", texts("card.noise.unknown"))
    disturbed, blocks = (sum(noise[name] for noise in known) for name in ("disturbed", "blocks"))
    text = texts("card.noise.blocks", disturbed=disturbed, blocks=blocks)
    if (visible := _visible(records)) is not None:
        text += texts("card.noise.visible", effect=number(100 * visible, texts.language))
    return NoiseBadge("busy" if disturbed else "quiet", text)


def _visible(records: Mapping[str, StageRecord]) -> float | None:
    """The smallest effect the session sees in its fixed shapes: the largest of its classes."""
    if "measure_ab" not in records:
        return None
    found = [
        abs(metric.value)
        for metric in records["measure_ab"].metrics
        if metric.name == "smallest_visible_effect"
        and metric.value is not None
        and "source=load" not in label_text(metric.labels)
    ]
    return max(found, default=None)
