"""The figures a run may hold: the theme each belongs to, and which way is better.

The names are the contract of ``docs/design.md``; a test holds the two together. A gate may
only name one of these, so that a slip of the pen is found before the run and not after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Theme = Literal[
    "machine", "load", "training", "quality", "latency", "throughput", "memory", "energy",
    "hybrid", "rollback", "report",
]  # fmt: skip
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Figure:
    theme: Theme
    better: Better = "neither"


FIGURES: dict[str, Figure] = {
    "read_bandwidth_gbps": Figure("machine", "higher"),
    "int8_peak_gmacs": Figure("machine", "higher"),
    "memory_available_gb": Figure("machine", "higher"),
    "gpu_read_bandwidth_gbps": Figure("machine", "higher"),
    "gpu_memory_available_gb": Figure("machine", "higher"),
    "requests": Figure("load"),
    "request_rate_per_s": Figure("load"),
    "gap_cv": Figure("load"),
    "prompt_tokens": Figure("load"),
    "output_tokens": Figure("load"),
    "class_share": Figure("load"),
    "final_bits_per_byte": Figure("training", "lower"),
    "training_tokens": Figure("training"),
    "training_tokens_per_s": Figure("training", "higher"),
    "training_time_s": Figure("training", "lower"),
    "teacher_tokens": Figure("training"),
    "teacher_time_s": Figure("training", "lower"),
    "int8_gradient_error": Figure("training", "lower"),
    "training_energy_j": Figure("training", "lower"),
    "share_zero": Figure("training"),
    "bits_per_byte": Figure("quality", "lower"),
    "quality_gap_bits_per_byte": Figure("quality", "lower"),
    "ttft_ms": Figure("latency", "lower"),
    "tpot_ms": Figure("latency", "lower"),
    "latency_ms": Figure("latency", "lower"),
    "e2e_ms": Figure("latency", "lower"),
    "speedup": Figure("latency", "higher"),
    "smallest_visible_effect": Figure("latency", "lower"),
    "decode_speedup": Figure("latency", "higher"),
    "prefill_speedup": Figure("latency", "higher"),
    "decode_speedup_over_int8": Figure("latency", "higher"),
    "prefill_speedup_over_int8": Figure("latency", "higher"),
    "decode_tokens_per_s": Figure("throughput", "higher"),
    "prefill_tokens_per_s": Figure("throughput", "higher"),
    "throughput_ratio": Figure("throughput", "higher"),
    "accelerators_needed_fluid": Figure("throughput", "lower"),
    "accelerators_needed": Figure("throughput", "lower"),
    "model_memory_mb": Figure("memory", "lower"),
    "memory_ratio": Figure("memory", "higher"),
    "memory_ratio_over_int8": Figure("memory", "higher"),
    "gpu_memory_both_arms_mb": Figure("memory", "lower"),
    "memory_both_arms_mb": Figure("memory", "lower"),
    "energy_j_per_token": Figure("energy", "lower"),
    "energy_j_per_request": Figure("energy", "lower"),
    "hybrid_quality_loss_bits_per_byte": Figure("hybrid", "lower"),
    "hybrid_size_ratio": Figure("hybrid", "lower"),
    "layers": Figure("hybrid"),
    "lost_requests": Figure("rollback", "lower"),
    "truncated_requests": Figure("rollback", "lower"),
    "rollback_first_token_s": Figure("rollback", "lower"),
    "capacity_per_s": Figure("rollback", "higher"),
    "replay_speedup": Figure("rollback"),
    "goodput_per_s": Figure("rollback", "higher"),
    "slo_met_share": Figure("rollback", "higher"),
    "gates_failed": Figure("report", "lower"),
}


def better(name: str) -> Better:
    """Which way is better for a metric; ``neither`` for one the contract does not know."""
    return FIGURES[name].better if name in FIGURES else "neither"
