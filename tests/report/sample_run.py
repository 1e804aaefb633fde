"""A complete run folder with made-up figures, for tests of what reads records.

The shapes are those of docs/design.md; the numbers are drawn from a fixed seed and mean
nothing. No test of a measurement may use them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.files import write_json
from workbench.measure.statistics import Estimate, count
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress
from workbench.records.metric import Metric
from workbench.records.run import Run, open_run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.serve.drill import Taken
from workbench.serve.rate_search import LargestRate, Point
from workbench.serve.tuned import points_table, searches_table, tuned_figures
from workbench.serve.tuning import Searched, Setting
from workbench.stages import report
from workbench.stages.context import StageContext

ARMS = ("full_precision", "ternary", "post_training", "int8", "int4")
SPEED = {"full_precision": 1.0, "ternary": 1.9, "post_training": 1.9, "int8": 1.4, "int4": 1.7}
CLASSES = ("interactive_1", "interactive_512")
MET = "requests that met every target of their class, of 2 a second with a target over 45 s"
PAIRED = "paired bootstrap over 64 groups, 2000 resamples, studentized"
TWICE = "full_precision in two places of each block"
METERED = "gross, the whole node (csv sample)"
WEIGHTS = "bytes of all weights in memory, embedding, head and scales included, counted"
FREE = "free main memory, at most what the control group leaves"
GATES = """
    - {metric: lost_requests, at_most: 0, on_fail: stop, why: a rollback must not lose a request}
    - {metric: memory_ratio, labels: {arm: ternary, source: probe}, at_least: 2.0, why: half}
    - {metric: decode_speedup, labels: {source: probe}, at_least: 1.5, why: clearly sooner}
    - {metric: quality_gap_bits_per_byte, labels: {arm: ternary}, at_most: 0.1, why: the margin}
    - {metric: energy_j_per_token, labels: {arm: ternary}, at_most: 1.0}
"""


def make_run(
    folder: Path, *, language: str = "en", seed: int = 1234, energy: bool = False,
    assumed_power_w: float | None = None, gates: str = GATES, stages: tuple[str, ...] = (),
    sequences: int = 24,
) -> Run:  # fmt: skip
    """A run below ``folder`` (set WORKBENCH_RUNS to keep it there) with every stage finished.

    energy: whether a meter was "found". stages: only these; all when empty. sequences: of
        hybrid_plan, a value that makes another run and decides no figure of the sample.
    """
    pilot = folder / "pilot.yaml"
    power = "null" if assumed_power_w is None else str(assumed_power_w)
    pilot.write_text(
        f"name: sample\nquestion: Would ternary weights pay off on this machine?\nseed: {seed}\n"
        f"hybrid_plan: {{sequences: {sequences}}}\n"
        f"report:\n  language: {language}\n  cost: {{assumed_power_w: {power}}}\n  gates:{gates}"
    )
    resolved = resolve(pilot)
    run = open_run(resolved)
    write_json(run.folder / "environment.json", ENVIRONMENT)
    draw = np.random.default_rng(seed)
    makers = {
        "readiness": _readiness, "profile_load": _profile_load, "train_qat": _train_qat,
        "measure_ab": _measure_ab, "hybrid_plan": _hybrid_plan,
        "deploy_rollback": _deploy_rollback,
    }  # fmt: skip
    for name, make in makers.items():
        if stages and name not in stages:
            continue
        record = StageRecord(name, run.stage_folder(name), key="0", duration_s=42.0)
        record.folder.mkdir(parents=True, exist_ok=True)
        make(record, draw, energy)
        record.save()
    if not stages:
        record = StageRecord("report", run.stage_folder("report"), key="0", duration_s=0.1)
        progress = Progress(run.events, "report")
        upstream = {name: run.record(name) for name in STAGES["report"].after}
        report.run(StageContext(resolved.pilot, record, progress, upstream))
        record.save()
    return run


def _around(record, draw, name: str, value: float, unit: str, n: int = 12, **labels: str) -> None:
    width = 0.04 * abs(value) + 1e-3
    middle = value + draw.normal(0, width / 4)
    record.measured(name, middle, unit, "requests answered in full", n=n,
                    lo=middle - width, hi=middle + width, **labels)  # fmt: skip


def _readiness(record: StageRecord, draw: np.random.Generator, energy: bool) -> None:
    for threads, value in (("1", 11.0), ("2", 19.0), ("4", 21.0)):
        _around(record, draw, "read_bandwidth_gbps", value, "GB/s", 7, threads=threads)
    record.missing("int8_peak_gmacs", "GMAC/s", "no compiler was found", threads="2")
    record.measured(
        "memory_available_gb",
        6.2,
        "GB",
        FREE,
        basis="exact",
    )
    for arm, tokens, prefill, memory in (
        ("full_precision", 4.1, 60.0, 2400.0), ("int8", 6.9, 57.0, 1230.0),
        ("int4", 8.3, 55.0, 1010.0),
        ("ternary", 9.7, 52.0, 820.0),
    ):  # fmt: skip
        labels = {"arm": arm, "source": "probe", "shape": "bitnet-700m"}
        _around(record, draw, "decode_tokens_per_s", tokens, "tokens/s", 5, **labels)
        _around(record, draw, "prefill_tokens_per_s", prefill, "tokens/s", 5, **labels)
        record.measured(
            "model_memory_mb",
            memory,
            "MB",
            WEIGHTS,
            basis="exact",
            **labels,
        )
    probe = {"arm": "ternary", "source": "probe", "shape": "bitnet-700m"}
    _around(record, draw, "decode_speedup", 2.37, "x", 5, **probe)
    _around(record, draw, "prefill_speedup", 0.87, "x", 5, **probe)
    record.measured(
        "memory_ratio",
        2.93,
        "x",
        "bytes of the weights, full_precision over ternary",
        basis="exact",
        **probe,
    )
    _around(record, draw, "decode_speedup_over_int8", 1.41, "x", 5, **probe)
    _around(record, draw, "prefill_speedup_over_int8", 0.91, "x", 5, **probe)
    record.measured(
        "memory_ratio_over_int8",
        1.5,
        "x",
        "bytes of the weights, full_precision over ternary",
        basis="exact",
        **probe,
    )
    _around(record, draw, "decode_speedup_over_int4", 1.17, "x", 5, **probe)
    _around(record, draw, "prefill_speedup_over_int4", 0.95, "x", 5, **probe)
    record.measured(
        "memory_ratio_over_int4",
        1.23,
        "x",
        "bytes of the weights, full_precision over ternary",
        basis="exact",
        **probe,
    )
    sizes = {"tiny-2m": 2e6, "small-25m": 25e6, "bitnet-700m": 7e8, "llama-3.2-3b": 3.2e9}
    record.save_table(
        "fits",
        pd.DataFrame(
            {
                "preset": list(sizes),
                "parameters": list(sizes.values()),
                "training_gb": [p * 18 / 1e9 for p in sizes.values()],
                "serving_full_gb": [p * 2.2 / 1e9 for p in sizes.values()],
                "serving_ternary_gb": [p * 0.7 / 1e9 for p in sizes.values()],
            }
        ),
    )
    blocks = [
        {"block": block, "order": order, "arm": arm, "phase": "decode", "tokens": 16,
         "seconds": 16 / (draw.normal(1, 0.03) * rate)}
        for block in range(5)
        for order, (arm, rate) in enumerate(
            (("full_precision", 4.1), ("int8", 6.9), ("int4", 8.3),
             ("ternary", 9.7))[:: 1 - block % 2 * 2]
        )
    ]  # fmt: skip
    record.save_table("probe", pd.DataFrame(blocks))
    record.notes.append("the probe took bitnet-700m: the next larger shape does not fit")


def _profile_load(record: StageRecord, draw: np.random.Generator, energy: bool) -> None:
    n = 1500
    requests = pd.DataFrame(
        {
            "start_s": np.sort(draw.uniform(0, 600, n)),
            "prompt_tokens": draw.lognormal(6, 0.9, n).astype(int) + 1,
            "output_tokens": draw.lognormal(4.5, 0.8, n).astype(int) + 1,
            "class": draw.choice(["interactive", "batch"], n, p=[0.8, 0.2]),
        }
    )
    record.save_table("requests", requests)
    windows = [
        {"start_s": 30.0 * k, "class": name, "requests": 10, "rate_per_s": rate * draw.gamma(9) / 9}
        for k in range(20)
        for name, rate in (("interactive", 2.0), ("batch", 0.5))
    ]
    record.save_table("windows", pd.DataFrame(windows))
    record.save_table("likeness", _likeness("piece"))
    record.facts.update(source="declared", kind="assumed")
    for name in ("prompt_tokens", "output_tokens"):
        for quantile in (0.5, 0.99):
            record.add(
                Metric(name, float(requests[name].quantile(quantile)), "tokens", "declared",
                       "assumed", n=n, labels={"quantile": f"p{100 * quantile:g}"})
            )  # fmt: skip


def _likeness(kept: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (load, figure, x, scale * (0.01 + x))
            for load, scale in (("whole", 1.0), ("generated", 1.1), (kept, 0.8))
            for figure, points in (
                ("gap", (0.1, 0.5, 0.9)),
                ("window_rate", (0.0, 0.5, 1.0)),
                ("dispersion", (1.0, 10.0, 60.0)),
                ("gap_cv", (0.0,)),
            )
            for x in points
        ],
        columns=["load", "figure", "x", "y"],
    )


def _train_qat(record: StageRecord, draw: np.random.Generator, energy: bool) -> None:
    steps = np.arange(1, 301)
    parts = []
    for arm, floor in (("full_precision", 3.1), ("ternary", 3.3)):
        bump = np.where((steps > 60) & (arm == "ternary"), 0.6 * np.exp(-(steps - 60) / 25), 0)
        loss = floor + 4.5 * np.exp(-steps / 45) + bump + draw.normal(0, 0.06, len(steps))
        phase = np.select([steps <= 60, steps <= 120], ["warmup", "threshold"], "finetune")
        parts.append(
            pd.DataFrame(
                {"arm": arm, "step": steps, "tokens": steps * 2048, "phase": phase,
                 "strength": np.clip((steps - 60) / 60, 0.0, 1.0),
                 "lr": 1e-3, "loss": loss, "grad_norm": 1.0}
            )
        )  # fmt: skip
    record.save_table("loss", pd.concat(parts))
    record.save_table(
        "evaluations",
        pd.DataFrame(
            [
                {"arm": arm, "weights": weights, "step": step, "loss": 3.0,
                 "bits_per_byte": 1.6 + offset + 1.5 * np.exp(-step / 60)}
                for arm, weights, offset in (
                    ("full_precision", "master", 0.0), ("ternary", "master", 0.05),
                    ("ternary", "ternary", 0.07),
                )
                for step in range(50, 301, 50)
            ]
        ),
    )  # fmt: skip
    names = _layer_names()
    rows = []
    for step, name in itertools.product(range(50, 301, 50), names):
        zero = draw.uniform(0.25, 0.45)
        rows.append(
            {"step": step, "layer": name, "share_minus": (1 - zero) / 2, "share_zero": zero,
             "share_plus": (1 - zero) / 2, "scale": 0.02,
             "flip_rate": draw.uniform(0.8, 1.2) * 0.08 * np.exp(-step / 120)
             if step > 50 else None}
        )  # fmt: skip
    record.save_table("layers", pd.DataFrame(rows))
    bins = np.linspace(-0.1, 0.1, 41)
    histograms = []
    for step in (0, 60, 120, 180, 240, 270, 300):
        weights = draw.normal(0, 0.02, 5000) if step < 120 else draw.choice([-0.04, 0, 0.04], 5000)
        counts, _ = np.histogram(weights + draw.normal(0, 0.01, 5000), bins)
        histograms += [
            {"step": step, "layer": names[0], "kind": "master", "left": left, "right": right,
             "count": int(count)}
            for left, right, count in zip(bins[:-1], bins[1:], counts, strict=True)
        ]  # fmt: skip
    record.save_table("histograms", pd.DataFrame(histograms))
    leak = {
        "document": "a<b>.py",
        "source": "a",
        "characters": 900,
        "leaked": 90,
        "share": 0.1,
        "left_out": False,
        "passage": "Permission is <i>hereby</i> granted",
        "learned_in": "c",
    }
    record.save_table("leaks", pd.DataFrame([leak]))
    record.measured("training_tokens", 614_400, "tokens", "answers that broke off")
    for arm, bpb in (("full_precision", 1.62), ("ternary", 1.69)):
        _around(record, draw, "training_tokens_per_s", 5200, "tokens/s", arm=arm)
        record.measured(
            "final_bits_per_byte",
            bpb,
            "bits/byte",
            "60 excerpts of held-out documents, after the last step",
            arm=arm,
        )
        record.measured(
            "training_time_s", 118.0, "s", "sum over the steps, forward to update", arm=arm
        )
        _energy(record, energy, "training_energy_j", 4000.0, "J", arm=arm)


def _measure_ab(record: StageRecord, draw: np.random.Generator, energy: bool) -> None:
    bits = {
        "full_precision": 1.62,
        "ternary": 1.69,
        "post_training": 3.9,
        "int8": 1.625,
        "int4": 1.65,
    }
    for arm in ARMS:
        trained = {"arm": arm, "source": "trained"}
        _around(record, draw, "bits_per_byte", bits[arm], "bits/byte", 64, **trained)
        memory = 9.8 if arm == "full_precision" else 6.1
        record.measured(
            "model_memory_mb",
            memory,
            "MB",
            WEIGHTS,
            basis="exact",
            **trained,
        )
        for name in CLASSES:
            tokens = int(name.split("_")[1])
            latency = (12 + 3.1 * tokens) / SPEED[arm]
            _around(record, draw, "ttft_ms", 12.0, "ms", 8, **trained, **{"class": name})
            _around(record, draw, "latency_ms", latency, "ms", 8, **trained, **{"class": name})
            if tokens > 1:
                _around(
                    record, draw, "tpot_ms", 3.1 / SPEED[arm], "ms", **trained, **{"class": name}
                )
            else:
                record.missing("tpot_ms", "ms", "one output token has no time per further token",
                               **trained, **{"class": name})  # fmt: skip
            if arm != "full_precision":
                _around(record, draw, "speedup", SPEED[arm] - (tokens == 1) * 0.7, "x", 8,
                        **trained, **{"class": name})  # fmt: skip
            _energy(record, energy, "energy_j_per_request", latency / 50, "J", **trained,
                    **{"class": name})  # fmt: skip
        for batch in (1, 4, 8):
            rate = 320 * batch**0.7 * (SPEED[arm] if batch == 1 else 1.3)
            _around(record, draw, "decode_tokens_per_s", rate, "tokens/s", 8, **trained,
                    batch=str(batch))  # fmt: skip
            if arm != "full_precision":
                ratio = SPEED[arm] / batch**0.25
                _around(record, draw, "throughput_ratio", ratio, "x", **trained, batch=str(batch))
        for name in CLASSES:
            _energy(record, energy, "energy_j_per_token", 0.06 / SPEED[arm], "J", **trained,
                    **{"class": name})  # fmt: skip
        if arm != "full_precision":
            gap = bits[arm] - bits["full_precision"]
            record.measured("quality_gap_bits_per_byte", gap, "bits/byte", PAIRED,
                            n=64, lo=gap - 0.02, hi=gap + 0.02, **trained)  # fmt: skip
            record.measured(
                "memory_ratio",
                9.8 / 6.1,
                "x",
                "bytes of the weights, full_precision over ternary",
                basis="exact",
                **trained,
            )
    for arm in ARMS:
        under_load = {"arm": arm, "source": "load"}
        for quantile, tail in (("p50", 1.0), ("p95", 2.1)):
            for name, value in (("ttft_ms", 40.0), ("tpot_ms", 6.0), ("e2e_ms", 300.0)):
                _around(record, draw, name, tail * value / SPEED[arm], "ms", 200, **under_load,
                        quantile=quantile)  # fmt: skip
        record.missing("ttft_ms", "ms", "60 were observed; p99 needs 100", **under_load,
                       quantile="p99")  # fmt: skip
        record.measured("goodput_per_s", 4.1, "requests/s", MET, n=200, lo=3.9,
                        hi=4.2, **under_load)  # fmt: skip
        for name, joules in (("energy_j_per_request", 3.0), ("energy_net_j_per_request", 1.5),
                             ("energy_j_per_accepted_answer", 3.1)):  # fmt: skip
            _energy(record, energy, name, joules / SPEED[arm], "J", **under_load)
    for name in CLASSES:
        record.measured("smallest_visible_effect", 0.04, "x", TWICE, n=8, source="trained",
                        **{"class": name})  # fmt: skip


def _hybrid_plan(record: StageRecord, draw: np.random.Generator, energy: bool) -> None:
    rows, plan = [], []
    for place, name in enumerate(_layer_names()):
        loss = float(draw.exponential(0.004)) * (3 if place in (0, 27) else 1)
        for precision, share, size in (("ternary", 1.0, 20_000), ("int8", 0.04, 70_000)):
            rows.append({"base": "full_precision", "layer": name, "precision": precision,
                         "quality_loss": share * loss, "lo": share * loss - 0.002,
                         "hi": share * loss + 0.002, "size_bytes": size})  # fmt: skip
        choice = "high_precision" if loss > 0.012 else "int8" if loss > 0.006 else "ternary"
        size = {"ternary": 20_000, "int8": 70_000, "high_precision": 260_000}[choice]
        plan.append({"layer": name, "precision": choice, "size_bytes": size, "quality_loss": loss})
    record.save_table("sensitivity", pd.DataFrame(rows))
    record.save_table("plan", pd.DataFrame(plan))
    units, whole = len(plan), 260_000 * len(plan)
    front = []
    for ternary in range(0, units + 1, 4):
        size = 20_000 * ternary + 260_000 * (units - ternary)
        loss = 0.0002 * ternary**1.5
        front.append({"size_bytes": size, "size_ratio": size / whole, "quality_loss": loss,
                      "bound": loss, "chosen": ternary == 20, "ternary": ternary, "int8": 0,
                      "high_precision": units - ternary})  # fmt: skip
    record.save_table("front", pd.DataFrame(front))
    _around(record, draw, "hybrid_quality_loss_bits_per_byte", 0.015, "bits/byte", 24)
    record.measured(
        "hybrid_size_ratio",
        0.31,
        "",
        "bytes of the weights, full_precision over ternary",
        basis="exact",
    )
    for precision in ("ternary", "int8", "high_precision"):
        number = sum(row["precision"] == precision for row in plan)
        record.measured(
            "layers",
            float(number),
            "layers",
            "answers that broke off",
            basis="exact",
            precision=precision,
        )


def _deploy_rollback(record: StageRecord, draw: np.random.Generator, energy: bool) -> None:
    intended = np.sort(draw.uniform(0, 20, 90))
    arm = np.where(intended < 10, "hybrid", "full_precision")
    first = intended + draw.gamma(4, 0.012, 90) + (np.abs(intended - 10) < 0.5) * 0.05
    record.save_table(
        "requests",
        pd.DataFrame(
            {"id": np.arange(90), "class": "interactive", "arm": arm, "intended_s": intended,
             "sent_s": intended + 0.001, "first_token_s": first,
             "last_token_s": first + draw.gamma(5, 0.08, 90), "prompt_tokens": 64,
             "output_tokens": 32, "wanted_tokens": 32, "status": "done"}
        ),
    )  # fmt: skip
    record.save_table(
        "switches",
        pd.DataFrame([{"time_s": 10.0, "from_arm": "hybrid", "to_arm": "full_precision",
                       "reason": "rehearsal"}]),
    )  # fmt: skip
    record.save_table("likeness", _likeness("replayed"))
    record.add(count(0, 90).metric("lost_requests", "requests", "answers that broke off"))
    record.add(count(0, 90).metric("truncated_requests", "requests", "answers that broke off"))
    record.measured(
        "rollback_first_token_s", 0.083, "s", "sum over the steps, forward to update", n=1
    )
    for phase, arms, factor in (
        ("before", ("hybrid",), 1.0),
        ("switch", ("hybrid", "full_precision"), 1.8),
        ("after", ("full_precision",), 1.2),
    ):
        for quantile, tail in (("p50", 1.0), ("p99", 2.6)):
            for of in arms:
                labels = {"arm": of, "phase": phase, "quantile": quantile}
                _around(record, draw, "ttft_ms", 48 * factor * tail, "ms", 30, **labels)
                _around(record, draw, "e2e_ms", 420 * factor * tail, "ms", 30, **labels)
    for of in ("full_precision", "hybrid"):
        record.measured(
            "goodput_per_s",
            4.4,
            "requests/s",
            MET,
            n=90,
            arm=of,
        )
        record.measured("slo_met_share", 0.98, "", "answers that broke off", n=90, lo=0.92, hi=1.0,
                        arm=of, **{"class": "interactive"})  # fmt: skip
    record.facts["carries"] = {
        "full_precision": {"answer": "no", "why": "capacity", "share": 0.62},
        "hybrid": {"answer": "not_measured", "why": "slower", "share": 0.31},
    }
    taken = [
        Taken("command", 40, 0, 0, 0, 0.083, 60.0, 16.0, 0.0),
        Taken("kill", 38, 0, 2, 0, 0.08, 68.0, 16.5, 0.5, 3.2, "the arm's process has ended"),
        Taken("hang", skipped="the drill's budget ended before it"),
    ]
    record.save_table("drill", pd.DataFrame([each.to_json() for each in taken]))
    _tuned(record)
    record.measured(
        "memory_both_arms_mb",
        16.0,
        "MB",
        WEIGHTS,
        basis="exact",
    )
    record.notes.append("11 answers of the profile were cut to 64 tokens")


def _tuned(record: StageRecord) -> None:
    found = [
        Searched(arm, "profile", Setting(slots), LargestRate("found", 4.0 * slots, 8.0 * slots,
                                                             True, "held twice", points))
        for arm in ("full_precision", "hybrid")
        for slots in (2, 8)
        for points in ((
            Point(4.0 * slots, "held", 5.0, 90, 4.0 * slots,
                  {"interactive": Estimate(0.97, None, None, 80, "")}, {"p95": 80.0}),
            Point(8.0 * slots, "overloaded", 2.0, 60),
        ),)
    ]  # fmt: skip
    record.save_table("tuning", searches_table(found, 2.0))
    record.save_table("tuning_points", points_table(found))
    for figure in tuned_figures(found, 2.0, 1.5, "EUR"):
        record.add(figure)


def _energy(
    record: StageRecord, found: bool, name: str, value: float, unit: str, **labels: str
) -> None:
    if found:
        record.measured(name, value, unit, METERED, n=8, lo=0.9 * value,
                        hi=1.1 * value, **labels)  # fmt: skip
    else:
        record.missing(name, unit, "no_meter: RAPL is not readable, no NVIDIA GPU", **labels)


def _layer_names() -> list[str]:
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    return [f"model.layers.{block}.{kind}" for block in range(4) for kind in kinds]


ENVIRONMENT = {
    "workbench": "0.1.0",
    "git": {"commit": "0123456789abcdef", "dirty": False},
    "python": "3.11.7",
    "system": "Linux 6.1",
    "packages": {"numpy": "2.4.6", "torch": "2.13.0"},
    "machine_digest": "sample",
    "machine": {
        "cpu": {"model": "Sample CPU", "features": ["avx2"], "cores": 2, "usable_cores": 2},
        "memory": {"total_bytes": 8_000_000_000, "available_bytes": 6_200_000_000},
        "gpus": [],
        "no_torch_gpu_because": "torch was built without CUDA",
        "compiler": None,
    },
}
