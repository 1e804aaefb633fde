"""What the report's page shows, as plain rows of text: every number already in words.

The templates hold the order of the sections and nothing else; what is shown, to how many
digits, and in which language is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from workbench.pilot.sections.base import language_of
from workbench.pilot.yaml_file import read_yaml
from workbench.records.metric import Metric
from workbench.records.plan import read_plan
from workbench.records.run import PILOT, Run
from workbench.records.stage_record import StageRecord
from workbench.report.claims import Records
from workbench.report.cost import LOAD_ROWS
from workbench.report.differences import significant
from workbench.report.gates import why_in
from workbench.roadmap import STAGES
from workbench.wording.labels import ARMS, PHASES, label_place, label_text, labels_of
from workbench.wording.numbers import duration, moment, number, raw, with_interval
from workbench.wording.reasons import reason_words
from workbench.wording.recorded import recorded
from workbench.wording.text import Texts
from workbench.wording.vocabulary import FIGURES, better

RESULT_THEMES = (
    "quality", "own_terms", "latency", "under_load", "throughput", "memory", "energy", "hybrid",
    "rollback",
)  # fmt: skip
HEADLINES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("readiness", "memory_ratio", {"arm": "ternary", "source": "probe"}),
    ("readiness", "decode_speedup", {"source": "probe"}),
    ("measure_ab", "quality_gap_bits_per_byte", {"arm": "ternary"}),
    ("measure_ab", "energy_j_per_token", {"arm": "ternary"}),
    ("deploy_rollback", "lost_requests", {}),
    ("deploy_rollback", "rollback_first_token_s", {}),
)
"""The figures a manager asks for first: stage, metric, labels."""


@dataclass(frozen=True)
class TableRow:
    """One figure of a table. mark: the letter of its "how" below the table. differs: of a
    comparison, whether it is one after the correction for all that are shown. exact: the value with
    all its digits, for a spreadsheet; ends: ``lo|hi``, likewise."""

    of: str
    value: str
    interval: str
    n: str
    kind: str
    kind_name: str
    mark: str = ""
    differs: bool | None = None
    exact: str = ""
    ends: str = "|"


@dataclass
class Group:
    """A metric and its rows."""

    title: str
    unit: str
    better: str
    rows: list[TableRow] = field(default_factory=list)


@dataclass
class Table:
    """Groups of rows and the footnotes that say how each was obtained."""

    title: str = ""
    groups: list[Group] = field(default_factory=list)
    hows: dict[str, str] = field(default_factory=dict)


def metric_table(
    metrics: Iterable[Metric],
    texts: Texts,
    title: str = "",
    differs: Mapping[int, bool] | None = None,
) -> Table:
    """Measured figures grouped by name, in the order of the contract.

    differs: ``id`` of a metric that compares -> whether it differs.
    """
    known = list(FIGURES)
    ordered = sorted(
        (m for m in metrics if m.value is not None),
        key=lambda m: (
            known.index(m.name) if m.name in FIGURES else len(known),
            m.name,
            _place(m.labels),
        ),
    )
    table, marks = Table(title), {}
    for metric in ordered:
        group_title = texts.metric(metric.name)
        if not table.groups or table.groups[-1].title != group_title:
            unit = texts.unit(metric.unit)
            table.groups.append(Group(group_title, unit, better(metric.name)))
        mark = marks.setdefault(metric.how, _letters(len(marks))) if metric.how else ""
        row = _row(metric, texts, mark)
        row = replace(row, differs=(differs or {}).get(id(metric)))
        table.groups[-1].rows.append(row)
    table.hows = {mark: how for how, mark in marks.items()}
    return table


def result_tables(records: Records, texts: Texts) -> list[Table]:
    """One table a theme: quality, latency, throughput, memory, energy, hybrid, rollback."""
    themed: dict[str, list[Metric]] = {theme: [] for theme in RESULT_THEMES}
    found_different, differs = significant(records), {}
    for stage, record in records.items():
        for metric in record.metrics:
            theme = FIGURES[metric.name].theme if metric.name in FIGURES else "other"
            # Latencies of the replay belong to the rollback, not beside the A/B measurement.
            theme = "rollback" if (stage, theme) == ("deploy_rollback", "latency") else theme
            theme = "under_load" if metric.labels.get("source") == "load" else theme
            themed.get(theme, []).append(metric)
            if (at := (stage, metric.name, label_text(metric.labels))) in found_different:
                differs[id(metric)] = found_different[at]
    tables = [
        metric_table(found, texts, texts(f"theme.{t}"), differs) for t, found in themed.items()
    ]
    return [table for table in tables if table.groups]


def headlines(records: Records, texts: Texts) -> list[dict[str, str]]:
    """The tiles under the verdict."""
    tiles = []
    for stage, name, labels in HEADLINES:
        metric = records[stage].metric(name, **labels) if stage in records else None
        if metric is None:
            continue
        tile = {"title": texts.metric(name), "of": texts.labels(metric.labels)}
        if metric.value is None:
            why = reason_words(metric.reason or "", texts)
            tile |= {"value": texts("kind.not measured"), "unit": "", "note": why}
        else:
            value, interval = with_interval(metric.value, metric.lo, metric.hi, texts.language)
            note = interval or reason_words(metric.reason or "", texts)
            tile |= {"value": value, "unit": texts.unit(metric.unit), "note": note}
        tiles.append(tile | {"missing": "yes" if metric.value is None else ""})
    return tiles


def gate_rows(record: StageRecord, texts: Texts) -> list[dict[str, str]]:
    rows = []
    for row in record.table("gates").to_dict("records"):
        value, interval = _valued(row, "value", texts)
        rows.append(
            {
                "title": texts.metric(row["metric"]),
                "of": texts.labels(labels_of(row["labels"])),
                "rule": texts(f"page.{row['side']}", limit=row["limit"]),
                "unit": texts.unit(row["unit"]),
                "why": (why := why_in(row["why"] or "", texts.language)),
                "why_language": language_of(why),
                "must": texts("page.must_hold") if row["on_fail"] == "stop" else "",
                "value": value,
                "interval": interval,
                "decider": "" if _empty(row["decider"]) else _fine(row, texts),
                "by_value": texts("page.by_value") if row["decided_by"] == "value" else "",
                "rule_csv": raw(row["side"], row["limit"]),
                "decider_csv": raw(row["decider"]),
                "value_csv": raw(row["value"], row["lo"], row["hi"]),
                "outcome": row["outcome"],
                "outcome_name": texts.get(f"outcome.{row['outcome']}", row["outcome"]),
                "reason": _reason(row, texts),
            }
        )
    return rows


def plan_view(run: Run, records: Records, texts: Texts) -> list[str]:
    """When and what was written down before the first figure, and whether it still stands so."""
    plan = read_plan(run.folder)
    if plan is None:
        return [texts("page.no_plan")]
    written = moment(plan.written, texts.language)
    said = [texts("page.plan", count=len(plan.gates), written=written, sha256=plan.sha256)]
    if not plan.is_whole:
        said.append(texts("page.plan_changed"))
    if plan.gates != read_yaml(run.folder / PILOT).values["report"]["gates"]:
        said.append(texts("page.plan_differs"))
    before = [name for name, record in records.items() if record.started[:19] < plan.written[:19]]
    if before:
        said.append(
            texts("page.plan_later", stages=", ".join(texts(f"stage.{it}") for it in before))
        )
    return said


def claim_groups(record: StageRecord, texts: Texts) -> list[dict[str, Any]]:
    """Each claim with the figures of this run beside it."""
    groups: dict[str, dict[str, Any]] = {}
    for row in record.table("claims").to_dict("records"):
        key = row["claim"]
        group = groups.setdefault(
            key,
            {
                "title": texts(f"claim.{key}.title"),
                "claimed": number(row["claimed"], texts.language),
                "theoretical": row["claimed_kind"] == "theoretical",
                "source": row["source"],
                "conditions": texts(f"claim.{key}.conditions"),
                "behind": texts(f"claim.{key}.behind"),
                "rows": [],
            },
        )
        value, interval = _valued(row, "measured", texts)
        group["rows"].append(
            {
                "of": _claim_figure(row, texts),
                "value": value,
                "interval": interval,
                "unit": texts.unit(row["unit"]),
                "n": "" if _empty(row["n"]) else f"{row['n']:.0f}",
                "kind": row["kind"],
                "kind_name": texts(f"kind.{row['kind']}"),
                "reason": _reason(row, texts),
            }
        )
    return list(groups.values())


def cost_rows(record: StageRecord, requests_per_day: float, texts: Texts) -> list[dict[str, str]]:
    """Costs of fixed shapes that have a value, then a row for each reason why others have none."""
    rows, absent = [], {}
    found = record.table("cost")
    for row in found[~found["per"].isin(LOAD_ROWS)].to_dict("records"):
        if _empty(row["value"]):
            name = texts(f"cost.{row['per']}", requests=requests_per_day)
            absent.setdefault(reason_words(row["reason"], texts), {})[name] = None
            continue
        value, interval = _valued(row, "value", texts)
        rows.append(
            {
                "of": texts(f"cost.{row['per']}", requests=requests_per_day)
                + (f" ({texts('cost.parts', covers=row['covers'])})" if row.get("covers") else ""),
                "labels": texts.labels(labels_of(row["labels"])),
                "value": value,
                "interval": interval,
                "currency": row["currency"],
                "csv": raw(row["value"], row["lo"], row["hi"]),
                "energy": number(row["energy_j"] / 3.6e6, texts.language),
                "energy_csv": raw(row["energy_j"] / 3.6e6),
                "energy_kind": row.get("energy_kind") or "",
                "energy_kind_name": texts.get(f"kind.{row.get('energy_kind')}", ""),
                "kind": row["kind"],
                "kind_name": texts(f"kind.{row['kind']}"),
                "how": row["how"],
            }
        )
    for reason, names in absent.items():
        rows.append(
            {
                "of": ", ".join(names), "labels": "", "value": texts("kind.not measured"),
                "interval": "", "currency": "", "energy": "", "energy_kind": "",
                "csv": raw(None, None, None), "energy_csv": "",
                "energy_kind_name": "", "kind": "not measured",
                "kind_name": texts("kind.not measured"), "how": reason,
            }
        )  # fmt: skip
    return rows


def sample_prices(record: StageRecord | None) -> bool:
    """Whether what the run was judged by is priced by samples."""
    return record is not None and bool(record.table("cost")["sample"].any())


def missing_rows(records: Records, texts: Texts) -> list[dict[str, Any]]:
    """What has no value: a row for each reason in words and stage, with the figures it is of.

    ``details`` are the technical sentences that the words stand for.
    """
    together: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    details: dict[tuple[str, str], dict[str, None]] = {}
    for stage, record in records.items():
        for metric in record.metrics:
            if metric.value is None:
                reason = metric.reason or ""
                key = (stage, reason_words(reason, texts))
                together.setdefault(key, {}).setdefault(metric.name, []).append(metric.labels)
                if key[1] not in (reason, recorded(reason, texts).text):
                    details.setdefault(key, {})[reason] = None
    return [
        {
            "stage": texts(f"stage.{stage}"),
            "figures": [
                {"title": texts.metric(name), "of": _spread(labels, texts)}
                for name, labels in figures.items()
            ],
            "reason": reason,
            "details": list(details.get((stage, reason), ())),
        }
        for (stage, reason), figures in together.items()
    ]


def verdict_view(records: Records, texts: Texts) -> dict[str, Any]:
    """Decision, reasons and caveats in the page's language."""
    report = records.get("report")
    if report is None:
        done = _capital(texts("verdict.no_report", done=len(records), all=len(STAGES)))
        return {"decision": "unfinished", "name": texts("decision.unfinished"),
                "reasons": [done], "caveats": []}  # fmt: skip
    verdict = report.facts["verdict"]
    return {
        "decision": verdict["decision"],
        "name": _decision(report, texts),
        "reasons": [_sentence(s, texts) for s in verdict["reasons"]],
        "caveats": [_sentence(s, texts) for s in verdict["caveats"]],
    }


def second_judgement(again: StageRecord, first: StageRecord, texts: Texts) -> dict[str, Any]:
    """What a judgement made after the figures were known changed, and the first one beside it."""
    return {
        "made": moment(again.started, texts.language),
        "changed": again.facts["second_judgement"]["changed"],
        "decision": first.facts["verdict"]["decision"],
        "name": _decision(first, texts),
        "reasons": [_sentence(s, texts) for s in first.facts["verdict"]["reasons"]],
        "gates": gate_rows(first, texts),
    }


def _decision(record: StageRecord, texts: Texts) -> str:
    """In the page's language; one that another version made, in its own word."""
    decision = record.facts["verdict"]["decision"]
    return texts.get(f"decision.{decision}", decision)


def later_judgements(run: Run, texts: Texts) -> list[dict[str, str]]:
    """Of the first judgement's page: those that came after it."""
    return [
        {
            "made": moment(record.started, texts.language),
            "name": _decision(record, texts),
            "page": (record.folder / run.report.name).relative_to(run.folder).as_posix(),
        }
        for record in run.judgements()
    ]


def stage_view(name: str, record: StageRecord | None, texts: Texts) -> dict[str, Any]:
    """One section of "stage by stage", without its figures."""
    view: dict[str, Any] = {
        "name": name,
        "title": texts(f"stage.{name}"),
        "decides": texts(f"decides.{name}"),
        "finished": record is not None,
    }
    if record:
        span = duration(record.duration_s, texts.language)
        many = record.attempts > 1
        took = texts("page.took_attempts" if many else "page.took", time=span, n=record.attempts)
        view["took"] = took
        said = record.facts.get("verdict")
        view["conclusions"] = said if isinstance(said, list) else []
        view["notes"] = list(dict.fromkeys(record.notes))
        view["table"] = metric_table(record.metrics, texts)
        view["count"] = sum(m.value is not None for m in record.metrics)
    return view


def _row(metric: Metric, texts: Texts, mark: str) -> TableRow:
    value, interval = with_interval(metric.value or 0.0, metric.lo, metric.hi, texts.language)
    return TableRow(
        of=texts.labels(metric.labels),
        value=value,
        interval=interval,
        n="" if metric.n is None else number(metric.n, texts.language),
        kind=metric.kind,
        kind_name=texts(f"kind.{metric.kind}"),
        mark=mark,
        exact=str(metric.value),
        ends="|".join("" if end is None else str(end) for end in (metric.lo, metric.hi)),
    )


def _spread(labels: list[dict[str, str]], texts: Texts) -> str:
    """What many figures are of, each label's values named once."""
    names = sorted({name for own in labels for name in own}, key=label_place)
    values = [dict.fromkeys(own[name] for own in labels if name in own) for name in names]
    return " · ".join(
        ", ".join(texts.label(name, value) for value in known)
        for name, known in zip(names, values, strict=True)
    )


def _claim_figure(row: Mapping[str, Any], texts: Texts) -> str:
    """The figure beside a claim; that it is ternary goes without saying."""
    if not row["metric"]:
        return ""
    labels = {k: v for k, v in labels_of(row["labels"]).items() if k != "arm"}
    return texts.figure(row["metric"], labels)


def _sentence(sentence: Mapping[str, Any], texts: Texts) -> str:
    """In the page's language; one that another version wrote, as it stands in the record."""
    if not texts.get(sentence["code"], ""):
        return _capital(sentence["text"])
    values = dict(sentence["values"])
    if "unit" in values:
        values["unit"] = texts.unit(values["unit"])
    if "arm" in values:
        values["arm"] = texts.label("arm", values["arm"])
    if "format" in values:
        values["format"] = recorded(values["format"], texts).text
    if values.get("reason_code"):
        values["reason"] = texts(f"reason.{values['reason_code']}", n=values.get("n"))
    elif "reason" in values:
        values["reason"] = reason_words(values["reason"], texts)
    return _capital(texts(sentence["code"], **values))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _valued(row: Mapping[str, Any], column: str, texts: Texts) -> tuple[str, str]:
    """(value, interval) in words; "not measured" where there is no value."""
    if _empty(row[column]):
        return texts("kind.not measured"), ""
    lo, hi = (None if _empty(row[end]) else row[end] for end in ("lo", "hi"))
    return with_interval(row[column], lo, hi, texts.language)


def _fine(row: Mapping[str, Any], texts: Texts) -> str:
    """The deciding end, to the digits its interval is shown with."""
    lo, hi = (None if _empty(row[end]) else row[end] for end in ("lo", "hi"))
    if lo is None or hi is None:
        return number(row["decider"], texts.language)
    return with_interval(row["decider"], lo, hi, texts.language)[0]


def _reason(row: Mapping[str, Any], texts: Texts) -> str:
    if not row["reason_code"]:
        return reason_words(row["reason"], texts)
    n = None if _empty(row["n"]) else int(row["n"])
    if row["reason_code"] == "too_noisy":
        margin = 100 * (max(row["limit"], 1 / row["limit"]) - 1)
        return texts("reason.too_noisy", effect=100 * row["effect"], margin=margin)
    return texts(f"reason.{row['reason_code']}", n=n)


def _empty(value: Any) -> bool:
    return value is None or pd.isna(value)


def _place(labels: Mapping[str, str]) -> tuple[Any, ...]:
    """Sorts figures of one metric: under the same conditions the arms stand together."""

    def counted(value: str) -> tuple[int, str]:
        digits = "".join(c for c in value if c.isdigit())
        return int(digits or 0), value

    phase, arm = labels.get("phase", ""), labels.get("arm", "")
    return (
        labels.get("source", ""),
        counted(labels.get("class", "")),
        counted(labels.get("batch", "")),
        PHASES.index(phase) if phase in PHASES else len(PHASES),
        counted(labels.get("quantile", "")),
        ARMS.index(arm) if arm in ARMS else len(ARMS),
    )


def _letters(place: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    head = _letters(place // 26 - 1) if place >= 26 else ""
    return head + letters[place % 26]
