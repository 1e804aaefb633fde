"""Stage 6: gates, claims, cost and verdict, from the records of the stages before it.

It measures nothing and needs no model: whatever it says stands in a record already. A gate
that must hold and does not is noted in ``facts["stopping_gates"]``; the runner turns that
into exit code 4 after everything is written.
"""

from __future__ import annotations

from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.report.claims import claim_rows, claims_frame
from workbench.report.cost import cost_frame, cost_rows
from workbench.report.fleet import fleet_metrics
from workbench.report.gate_check import COUNTED, gate_problems
from workbench.report.gates import evaluate, gates_frame
from workbench.report.verdict import decide
from workbench.stages.context import StageContext
from workbench.wording.text import Texts


def check(pilot: Pilot) -> list[str]:
    """Gates about figures that no stage records, or that the gates themselves make."""
    return gate_problems(pilot)


def run(context: StageContext) -> None:
    """Fill tables ``gates``, ``claims``, ``cost``, the metric ``gates_failed`` and the verdict."""
    records, record = context.upstream, context.record
    settings = context.pilot.report
    slo = context.pilot.profile_load.interactive_slo
    for metric in fleet_metrics(records, settings.cost.accelerators, slo):
        record.add(metric)
    results = evaluate(settings.gates, {**records, "report": record})
    record.save_table("gates", gates_frame(results))
    record.save_table("claims", claims_frame(claim_rows(records)))
    record.save_table("cost", cost_frame(cost_rows(records, settings.cost, slo)))
    record.add(
        Metric(
            COUNTED,
            sum(r.outcome == "fail" for r in results),
            "gates",
            how="gates whose whole interval, or exact value, lies beyond the limit",
            kind="derived",
            basis="exact",
            n=len(results),
        )
    )
    texts = Texts()
    record.facts["verdict"] = decide(results, records, context.pilot).to_json()
    record.facts["stopping_gates"] = [r.sentence(texts) for r in results if r.stops]
    context.progress.note(f"verdict: {record.facts['verdict']['decision']}")
