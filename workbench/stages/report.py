"""Stage 6: gates, claims, cost and verdict, from the records of the stages before it.

It measures nothing and needs no model: whatever it says stands in a record already. A gate
that must hold and does not is noted in ``facts["stopping_gates"]``; the runner turns that
into exit code 4 after everything is written.
"""

from __future__ import annotations

from workbench.economics.what_if import what_if
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.pilot.spec import Pilot
from workbench.planner.rates import ReplicaRate, replica_rates
from workbench.records.metric import Metric
from workbench.report.claims import claim_rows, claims_frame
from workbench.report.cost import cost_frame, cost_rows
from workbench.report.economy import case_of, case_to_json
from workbench.report.economy import check as economy_problems
from workbench.report.economy_rows import (
    figures_frame,
    metrics,
    missing,
    months_frame,
    numbers_frame,
    tornado_frame,
)
from workbench.report.fleet import fleet_metrics
from workbench.report.forecast import (
    forecast,
    forecast_facts,
    forecast_frame,
    forecast_metrics,
)
from workbench.report.gate_check import COUNTED, gate_problems
from workbench.report.gates import evaluate, gates_frame
from workbench.report.goals import goal_rows, goals_frame, goals_without_case
from workbench.report.operations import operation_ratios
from workbench.report.training_gain import training_gain
from workbench.report.verdict import decide
from workbench.stages.context import StageContext
from workbench.wording.text import Texts


def check(pilot: Pilot) -> list[str]:
    """Gates about figures that no stage records, or that the gates themselves make; a tariff or
    telemetry that cannot be."""
    return [*gate_problems(pilot), *economy_problems(pilot)]


def run(context: StageContext) -> None:
    """Fill tables ``gates``, ``claims``, ``cost`` and those of the case, the metric
    ``gates_failed`` and the verdict."""
    records, record = context.upstream, context.record
    settings = context.pilot.report
    slo = context.pilot.profile_load.interactive_slo
    rates = replica_rates(records, slo, context.pilot.measure_ab.load.slots, context.pilot.seed)
    for metric in fleet_metrics(
        records, settings.cost.accelerators, slo, settings.cost.fleet.utilisation, rates
    ):
        record.add(metric)
    for metric in operation_ratios(records):
        record.add(metric)
    if gain := training_gain(records, settings.gates):
        record.add(gain.memory)
        record.add(gain.latency)
    _economy(context, settings.cost, slo, rates)
    _forecast(context)
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


def _forecast(context: StageContext) -> None:
    """How much more training the quality gate needs, from the run's own curve."""
    records, record, settings = context.upstream, context.record, context.pilot.report
    found = forecast(records, settings, context.pilot.seed)
    if found is None:
        return
    figures = forecast_metrics(found, records, settings)
    for metric in figures:
        record.add(metric)
    record.save_table("forecast", forecast_frame(found))
    record.facts["forecast"] = forecast_facts(found, figures, settings)


def _economy(
    context: StageContext, cost: Cost, slo: Slo, rates: dict[str, ReplicaRate] | str
) -> None:
    """The case of this run: its figures, what they are made of, and the case itself, so that the
    sliders of notebook 06 can ask what if."""
    records, record = context.upstream, context.record
    found = case_of(records, cost, slo, rates)
    if isinstance(found, str):
        record.facts["economy"] = {"reason": found}
        for metric in missing(found):
            record.add(metric)
        record.save_table("goals", goals_frame(goals_without_case(records, cost, slo, found)))
        return
    case, house, _ = found
    result = what_if(case, draws=cost.draws, seed=context.pilot.seed, uncertainty=cost.uncertainty)
    for metric in metrics(case, result):
        record.add(metric)
    record.save_table("economy", figures_frame(result))
    record.save_table("economy_numbers", numbers_frame(case))
    record.save_table("tornado", tornado_frame(result.tornado))
    record.save_table("pue_months", months_frame(house))
    record.save_table("goals", goals_frame(goal_rows(records, cost, slo, case, result)))
    record.facts["economy"] = {
        "case": case_to_json(case),
        "texts": list(case.texts),
        "accelerators": records["measure_ab"].facts.get("device", "cuda") != "cpu",
    }
