"""The figures a run may hold: the theme each belongs to, which way is better, and its labels.

This is the one list of them. The names are the contract of ``docs/design.md``, a test holds the
two together; the labels stand in ``docs/fields.md``, which is written from here. A gate may only
name what is in the list, so that a slip of the pen is found before the run and not after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from workbench.pilot.spec import Pilot

Theme = Literal[
    "machine", "load", "training", "quality", "own_terms", "latency", "throughput", "memory",
    "energy", "hybrid", "rollback", "money", "report",
]  # fmt: skip
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Values:
    """What a label may say. text: in words. of: the values in a run of this pilot; None where
    only the machine decides, and ``open_to`` says what any of them looks like."""

    text: str
    of: Callable[[Pilot], Sequence[str]] | None
    open_to: str = ""


LabelSet = Mapping[str, Values]


def words(*allowed: str) -> Values:
    """The same values in every run."""
    return Values(", ".join(f"`{word}`" for word in allowed), lambda _: allowed)


@dataclass(frozen=True)
class Figure:
    """labels: the sets of labels it comes with, one for each source of it."""

    theme: Theme
    better: Better = "neither"
    labels: tuple[LabelSet, ...] = ({},)


def _interactive(pilot: Pilot) -> list[str]:
    return [f"interactive_{tokens}" for tokens in pilot.measure_ab.interactive_output_tokens]


def _reference(pilot: Pilot) -> str:
    """Whose answers to own prompts the others' are held against."""
    return "checkpoint" if "checkpoint" in pilot.measure_ab.own_arms else "full_precision"


def _batched(pilot: Pilot) -> list[str]:
    return [f"batch_{size}" for size in pilot.measure_ab.batch_sizes]


_INTERACTIVE = "`interactive_N`, N of `measure_ab.interactive_output_tokens`"
_MEASURED_CLASSES = Values(
    f"{_INTERACTIVE}; `batch_N`, N of `measure_ab.batch_sizes`",
    lambda pilot: [*_interactive(pilot), *_batched(pilot)],
)
_THREADS = {"threads": Values("a number", None, r"[1-9][0-9]*")}
_SHAPE = Values("a model preset, or `checkpoint`: its own", None, r".+")
_CORPUS = {
    "corpus": Values(
        "a name of `data.sources`", lambda pilot: [source.label for source in pilot.data.sources]
    )
}
_LOAD_CLASS = {"class": words("interactive", "batch")}
_LOAD_QUANTILE = {"quantile": words("p50", "p90", "p95", "p99")}
_WINDOW = {"window": Values("a width, such as `60 s`", None, r"[0-9.e+]+ s")}
_BOTH_ARMS = {"arm": words("full_precision", "ternary")}
_PROBED = {
    "arm": words("full_precision", "int8", "int4", "ternary"), "source": words("probe"),
    "shape": _SHAPE,
}  # fmt: skip
_PROBED_GAIN = {**_PROBED, "arm": words("ternary")}
_TRAINED = {
    "arm": Values(
        "one of the pilot's own `measure_ab.arms`", lambda pilot: pilot.measure_ab.own_arms
    ),
    "source": words("trained"),
}
_TRAINED_GAIN = {
    "arm": Values(
        "one of the pilot's own `measure_ab.arms` but `full_precision`",
        lambda pilot: pilot.measure_ab.own_arms[1:],
    ),
    "source": words("trained"),
}
_SPECULATIVE = {"arm": words("speculative"), "source": words("trained")}
_DRAFT = {"draft": words("model", "prompt_lookup")}
_AGAINST_REFERENCE = {
    "arm": Values(
        "one of the pilot's own `measure_ab.arms` but the one that is compared with: `checkpoint`, "
        "or without it `full_precision`",
        lambda pilot: [arm for arm in pilot.measure_ab.own_arms if arm != _reference(pilot)],
    ),
    "source": words("trained"),
}
_TASK = {"task": Values("a name of `tasks`", lambda pilot: list(pilot.tasks))}
_OVER_CHECKPOINT = {
    "arm": Values(
        "one of the pilot's own `measure_ab.arms`, where `checkpoint` is among them",
        lambda pilot: [
            arm for arm in pilot.measure_ab.own_arms
            if arm != "checkpoint" and "checkpoint" in pilot.measure_ab.own_arms
        ],
    ),
    "source": words("trained"),
    "over": words("checkpoint"),
}  # fmt: skip
_ASKED = {
    "asked": Values("`prompts`, or a name of `tasks`", lambda pilot: ["prompts", *pilot.tasks])
}
_ALONE = {"class": Values(_INTERACTIVE, _interactive)}
_BATCH = {
    "batch": Values(
        "one of `measure_ab.batch_sizes`",
        lambda pilot: [str(size) for size in pilot.measure_ab.batch_sizes],
    )
}
_NEEDED = (_TRAINED_GAIN, _TRAINED_GAIN | _BATCH)
"""By simulation, and by the machine time at a batch."""
_REPLAY_QUANTILE = {"quantile": words("p50", "p90", "p99")}
_REPLAYED = (
    {"arm": words("hybrid"), "phase": words("before", "switch")} | _REPLAY_QUANTILE,
    {"arm": words("full_precision"), "phase": words("switch", "after")} | _REPLAY_QUANTILE,
)
_REHEARSED = (
    {"arm": words("hybrid"), "phase": words("before")},
    {"arm": words("full_precision"), "phase": words("after")},
)
_METERED = {
    "stage": words("train_qat", "measure_ab", "deploy_rollback"),
    "part": words("whole", "work", "idle", "unattributed"),
}
_SERVED = {"arm": words("full_precision", "hybrid")}
_TUNED = _SERVED | {
    "requests": Values(
        "`profile` or `tokens_N`, N of `deploy_rollback.tuning.output_tokens`",
        lambda pilot: [
            *(f"tokens_{n}" for n in pilot.deploy_rollback.tuning.output_tokens), "profile",
        ],
    ),
    "slots": Values(
        "one of `deploy_rollback.tuning.slots`",
        lambda pilot: [str(slots) for slots in pilot.deploy_rollback.tuning.slots],
    ),
    "batch_wait_ms": Values(
        "one of `deploy_rollback.tuning.batch_wait_ms`",
        lambda pilot: [f"{wait:g}" for wait in pilot.deploy_rollback.tuning.batch_wait_ms],
    ),
}  # fmt: skip
_WAY = {
    "way": Values(
        "`command`, and each of `deploy_rollback.drill.ways`",
        lambda pilot: ["command", *pilot.deploy_rollback.drill.ways],
    )
}
_SAME_LOAD = {
    "arm": Values("one of `measure_ab.arms`", lambda pilot: pilot.measure_ab.all_arms),
    "source": words("load"),
}
_SAME_LOAD_OTHER = {
    "arm": Values(
        "one of `measure_ab.arms` but `full_precision`",
        lambda pilot: [arm for arm in pilot.measure_ab.all_arms if arm != "full_precision"],
    ),
    "source": words("load"),
}
_SAME_LOAD_OWN = {**_TRAINED, "source": words("load")}
_CASE = {"arm": Values("one of the pilot's own `measure_ab.arms`", lambda p: p.measure_ab.own_arms)}
_CASE_GAIN = {
    "arm": Values(
        "one of the pilot's own `measure_ab.arms` but `full_precision`",
        lambda pilot: pilot.measure_ab.own_arms[1:],
    )
}
_ADDRESS = {
    "arm": Values(
        "an address of `measure_ab.arms`", lambda pilot: list(pilot.measure_ab.addresses)
    ),
    "source": words("load"),
}
_GAIN = {"arm": words("ternary"), "of": words("memory", "latency")}
_UNDER_LOAD = {"source": words("load")}
_TAIL = {"quantile": words("p50", "p95", "p99")}
_FAULT = {
    "fault": words(
        "refused", "hung", "queue_full", "http_error", "server_error", "broken_off", "broken_sse",
        "short",
    )
}  # fmt: skip

FIGURES: dict[str, Figure] = {
    "read_bandwidth_gbps": Figure("machine", "higher", (_THREADS,)),
    "int8_peak_gmacs": Figure("machine", "higher", (_THREADS,)),
    "memory_available_gb": Figure("machine", "higher"),
    "gpu_read_bandwidth_gbps": Figure("machine", "higher"),
    "gpu_memory_available_gb": Figure("machine", "higher"),
    "requests": Figure("load"),
    "request_rate_per_s": Figure("load"),
    "gap_cv": Figure("load"),
    "gap_autocorrelation": Figure("load"),
    "count_dispersion": Figure("load", labels=(_WINDOW,)),
    "prompt_tokens": Figure("load", labels=(_LOAD_QUANTILE,)),
    "output_tokens": Figure("load", labels=(_LOAD_QUANTILE,)),
    "class_share": Figure("load", labels=(_LOAD_CLASS,)),
    "session_turns": Figure("load"),
    "largest_tenant_share": Figure("load"),
    "concurrency": Figure("load", labels=({"statistic": words("mean", "p95", "most")},)),
    "prefix_reuse_share": Figure("load"),
    "seed_gap_bits_per_byte": Figure(
        "quality",
        "lower",
        (
            {
                "seed": Values(
                    "`seed` and those after it, `train.seeds` in all",
                    lambda pilot: [str(pilot.seed + k) for k in range(pilot.train.seeds)],
                )
            },
        ),
    ),
    "gap_over_seeds_bits_per_byte": Figure("quality", "lower"),
    "final_bits_per_byte": Figure(
        "training",
        "lower",
        ({"arm": words("full_precision", "ternary", "post_training", "checkpoint")},),
    ),
    "leaked_share": Figure("quality", "lower"),
    "judged_leaked_share": Figure("quality", "lower"),
    "leaked_documents": Figure("quality", "lower"),
    "corpus_final_bits_per_byte": Figure(
        "training",
        "lower",
        ({"arm": words("full_precision", "ternary", "post_training", "checkpoint")} | _CORPUS,),
    ),
    "training_tokens": Figure("training"),
    "training_tokens_per_s": Figure("training", "higher", (_BOTH_ARMS,)),
    "training_time_s": Figure("training", "lower", (_BOTH_ARMS,)),
    "teacher_tokens": Figure("training", labels=(_BOTH_ARMS,)),
    "teacher_time_s": Figure("training", "lower", (_BOTH_ARMS,)),
    "int8_gradient_error": Figure("training", "lower", ({"moment": words("before", "after")},)),
    "training_energy_j": Figure("training", "lower", (_BOTH_ARMS,)),
    "share_zero": Figure("training"),
    "ternary_share": Figure("training", "higher", ({"arm": words("ternary")},)),
    "bits_per_byte": Figure("quality", "lower", (_TRAINED, _ADDRESS)),
    "quality_gap_bits_per_byte": Figure("quality", "lower", (_TRAINED_GAIN, _OVER_CHECKPOINT)),
    "top1_agreement": Figure("own_terms", "higher", (_AGAINST_REFERENCE,)),
    "kl_nats_per_token": Figure("own_terms", "lower", (_AGAINST_REFERENCE,)),
    "answer_length_ratio": Figure("own_terms", "neither", (_AGAINST_REFERENCE,)),
    "answer_repetition": Figure("own_terms", "lower", (_TRAINED,)),
    "accepted_share": Figure("own_terms", "higher", (_TRAINED,)),
    "accepted_difference": Figure("own_terms", "higher", (_TRAINED_GAIN,)),
    "task_accuracy": Figure("own_terms", "higher", (_TRAINED | _TASK,)),
    "task_accuracy_difference": Figure("own_terms", "higher", (_TRAINED_GAIN | _TASK,)),
    "asked_leaked_share": Figure("own_terms", "lower", (_ASKED,)),
    "corpus_bits_per_byte": Figure("quality", "lower", (_TRAINED | _CORPUS,)),
    "corpus_quality_gap_bits_per_byte": Figure(
        "quality", "lower", (_TRAINED_GAIN | _CORPUS, _OVER_CHECKPOINT | _CORPUS)
    ),
    "ttft_ms": Figure("latency", "lower", (_TRAINED | _ALONE, _SAME_LOAD | _TAIL, *_REPLAYED)),
    "itl_ms": Figure("latency", "lower", (_SAME_LOAD | _TAIL,)),
    "tpot_ms": Figure("latency", "lower", (_TRAINED | _ALONE, _SAME_LOAD | _TAIL, *_REPLAYED)),
    "latency_ms": Figure("latency", "lower", (_TRAINED | _ALONE, _ADDRESS)),
    "e2e_ms": Figure("latency", "lower", (_SAME_LOAD | _TAIL, *_REPLAYED)),
    "speedup": Figure("latency", "higher", (_TRAINED_GAIN | _ALONE,)),
    "ttft_speedup": Figure("latency", "higher", (_SAME_LOAD_OTHER | _TAIL,)),
    "itl_speedup": Figure("latency", "higher", (_SAME_LOAD_OTHER | _TAIL,)),
    "tpot_speedup": Figure("latency", "higher", (_SAME_LOAD_OTHER | _TAIL,)),
    "e2e_speedup": Figure("latency", "higher", (_SAME_LOAD_OTHER | _TAIL,)),
    "network_connect_ms": Figure("latency", "lower", (_SAME_LOAD,)),
    "network_round_trip_ms": Figure("latency", "lower", (_SAME_LOAD,)),
    "changed_answers": Figure("quality", "lower", (_SAME_LOAD_OWN,)),
    "smallest_visible_effect": Figure(
        "latency",
        "lower",
        (
            {"class": _MEASURED_CLASSES, "source": words("trained")},
            _SAME_LOAD_OTHER
            | {"speedup": words("ttft_speedup", "itl_speedup", "tpot_speedup", "e2e_speedup")}
            | _TAIL,
        ),
    ),
    "decode_speedup": Figure("latency", "higher", (_PROBED_GAIN,)),
    "prefill_speedup": Figure("latency", "higher", (_PROBED_GAIN,)),
    "decode_speedup_over_int8": Figure("latency", "higher", (_PROBED_GAIN,)),
    "prefill_speedup_over_int8": Figure("latency", "higher", (_PROBED_GAIN,)),
    "decode_speedup_over_int4": Figure("latency", "higher", (_PROBED_GAIN,)),
    "prefill_speedup_over_int4": Figure("latency", "higher", (_PROBED_GAIN,)),
    "decode_tokens_per_s": Figure("throughput", "higher", (_TRAINED | _BATCH, _PROBED)),
    "prefill_tokens_per_s": Figure("throughput", "higher", (_PROBED,)),
    "throughput_ratio": Figure("throughput", "higher", (_TRAINED_GAIN | _BATCH,)),
    "draft_acceptance": Figure("throughput", "higher", (_SPECULATIVE,)),
    "tokens_per_verification": Figure("throughput", "higher", (_SPECULATIVE,)),
    "draft_share": Figure("throughput", labels=(_SPECULATIVE | _DRAFT,)),
    "accelerators_needed_fluid": Figure("throughput", "lower", _NEEDED),
    "accelerators_needed": Figure("throughput", "lower", _NEEDED),
    "model_memory_mb": Figure("memory", "lower", (_TRAINED, _ADDRESS, _PROBED)),
    "memory_ratio": Figure("memory", "higher", (_TRAINED_GAIN, _PROBED_GAIN)),
    "memory_ratio_over_int8": Figure("memory", "higher", (_PROBED_GAIN,)),
    "memory_ratio_over_int4": Figure("memory", "higher", (_PROBED_GAIN,)),
    "gpu_memory_both_arms_mb": Figure("memory", "lower"),
    "memory_both_arms_mb": Figure("memory", "lower"),
    "energy_j_per_token": Figure(
        "energy", "lower", (_TRAINED | {"class": _MEASURED_CLASSES}, _SAME_LOAD)
    ),
    "energy_j_per_request": Figure(
        "energy", "lower", (_TRAINED | {"class": _MEASURED_CLASSES}, _SAME_LOAD, *_REHEARSED)
    ),
    "energy_net_j_per_request": Figure(
        "energy", "lower", (_TRAINED | {"class": _MEASURED_CLASSES}, _SAME_LOAD)
    ),
    "energy_j_per_accepted_answer": Figure("energy", "lower", (_SAME_LOAD,)),
    "prefill_energy_j_per_token": Figure("energy", "lower", (_SAME_LOAD,)),
    "decode_energy_j_per_token": Figure("energy", "lower", (_SAME_LOAD,)),
    "energy_ratio": Figure(
        "energy", "higher", (_TRAINED_GAIN | {"class": _MEASURED_CLASSES}, _SAME_LOAD_OTHER)
    ),
    "energy_net_ratio": Figure("energy", "higher", (_SAME_LOAD_OTHER,)),
    "accepted_answer_energy_ratio": Figure("energy", "higher", (_SAME_LOAD_OTHER,)),
    "deployment_energy_j": Figure("energy", "lower"),
    "metered_energy_j": Figure("energy", "neither", (_METERED,)),
    "hybrid_quality_loss_bits_per_byte": Figure("hybrid", "lower"),
    "hybrid_size_ratio": Figure("hybrid", "lower"),
    "trained_hybrid_over_patched_gap": Figure("hybrid", "lower"),
    "layers": Figure("hybrid", labels=({"precision": words("ternary", "int8", "high_precision")},)),
    "lost_requests": Figure("rollback", "lower"),
    "failed_requests": Figure("rollback", "lower", (_SERVED | _FAULT, _SAME_LOAD | _FAULT)),
    "dispatch_delay_ms": Figure(
        "rollback",
        "lower",
        tuple({"quantile": words("p50", "p99")} | of for of in ({}, _UNDER_LOAD)),
    ),
    "truncated_requests": Figure("rollback", "lower"),
    "rollback_first_token_s": Figure("rollback", "lower"),
    "drill_lost_requests": Figure("rollback", "lower", (_WAY,)),
    "drill_truncated_requests": Figure("rollback", "lower", (_WAY,)),
    "drill_first_token_s": Figure("rollback", "lower", (_WAY,)),
    "drill_ttft_ms": Figure("rollback", "lower", (_WAY,)),
    "capacity_per_s": Figure("rollback", "higher", (_SERVED, _SAME_LOAD_OWN)),
    "capacity_over_rate": Figure("rollback", "higher", (_SERVED,)),
    "replay_speedup": Figure("rollback", labels=({}, _UNDER_LOAD)),
    "largest_rate_over_load": Figure("rollback", "higher", (_SERVED,)),
    "largest_rate_per_s": Figure("rollback", "higher", (_TUNED,)),
    "tuned_energy_j_per_request": Figure("rollback", "lower", (_TUNED,)),
    "tuned_cost_per_1k_requests": Figure("rollback", "lower", (_TUNED,)),
    "cut_share": Figure("rollback", "lower", ({}, _UNDER_LOAD)),
    "replayed_gap_cv": Figure("rollback"),
    "replayed_window_p95": Figure("rollback"),
    "goodput_per_s": Figure("rollback", "higher", (_SERVED, _SAME_LOAD)),
    "goodput_difference_per_s": Figure("rollback", "higher", (_SAME_LOAD_OTHER,)),
    "slo_met_share": Figure(
        "rollback", "higher", (_SERVED | _LOAD_CLASS, _SAME_LOAD | _LOAD_CLASS)
    ),
    "slo_met_difference": Figure("rollback", "higher", (_SAME_LOAD_OTHER | _LOAD_CLASS,)),
    "servers_needed": Figure("money", "lower", (_CASE,)),
    "servers_freed": Figure("money", "higher", (_CASE,)),
    "energy_kwh_per_year": Figure("money", "lower", (_CASE,)),
    "cost_per_year": Figure("money", "lower", (_CASE,)),
    "cost_per_1k_requests": Figure("money", "lower", (_CASE,)),
    "cost_per_1m_input_tokens": Figure("money", "lower", (_CASE,)),
    "cost_per_1m_output_tokens": Figure("money", "lower", (_CASE,)),
    "cost_per_accepted_answer": Figure("money", "lower", (_CASE,)),
    "net_present_value": Figure("money", "higher", (_CASE_GAIN,)),
    "payback_years": Figure("money", "lower", (_CASE_GAIN,)),
    "operations_energy_ratio": Figure("money", "higher", ({"arm": words("ternary")},)),
    "bytes_moved_ratio": Figure("money", "higher", ({"arm": words("ternary")},)),
    "training_gain": Figure("report", "higher", (_GAIN,)),
    "forecast_tokens": Figure("report", "lower"),
    "forecast_hours": Figure("report", "lower"),
    "forecast_kwh": Figure("report", "lower"),
    "forecast_cost": Figure("report", "lower"),
    "forecast_covered": Figure("report", "higher"),
    "gates_failed": Figure("report", "lower"),
}


def better(name: str) -> Better:
    """Which way is better for a metric; ``neither`` for one the contract does not know."""
    return FIGURES[name].better if name in FIGURES else "neither"
