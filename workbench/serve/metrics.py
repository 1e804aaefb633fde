"""What /metrics says: vLLM's names where the meaning is the same, ``workbench_`` elsewhere.

vLLM measures its latencies from the arrival at the server; so do these, and each has the arm that
gave the answer as a label beside vLLM's ``model_name``. The buckets go down to half a
millisecond, because a 1-token request on a small model ends within a few. Of an upstream the
tokens are those that it counts itself (``usage``): what it sends are pieces, and an answer that
comes whole has no first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from workbench.engine.request import FinishReason
from workbench.engine.speculation_counts import SpeculationCounts
from workbench.serve.routed import Cause, RoutedRequest, Switch
from workbench.serve.router import Router

BUCKETS_S = tuple(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))[2:]
BUCKETS_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "arrival to first token",
    "vllm:inter_token_latency_seconds": "between two tokens of an answer",
    "vllm:request_time_per_output_token_seconds": "mean of an answer's tokens after the first",
    "vllm:e2e_request_latency_seconds": "arrival to the end",
    "vllm:request_queue_time_seconds": "arrival to a slot in an arm",
    "vllm:request_prefill_time_seconds": "slot to first token",
    "vllm:request_decode_time_seconds": "first token to the end",
    "vllm:request_prompt_tokens": "prompt tokens of a request",
    "vllm:request_generation_tokens": "output tokens of a request",
}
COUNTED_ENDS = ("stop", "length")


def counted(routed: RoutedRequest) -> tuple[int | None, int | None]:
    """Prompt and output tokens; None of an upstream that does not count them."""
    if not hasattr(routed.request, "fields"):
        return len(routed.request.prompt_tokens), routed.tokens
    usage = getattr(routed.submitted, "usage", {})
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _by_tokens(routed: RoutedRequest) -> bool:
    """Whether its pieces have times of their own: all but an upstream's answer that came whole."""
    return bool(getattr(routed.request, "stream", True))


class Metrics:
    """The collectors of one server, in a registry of their own.

    context: tokens that a slot holds; 0 where they are not known. restarts: arm -> how often its
    process was started again. resident_bytes: of each process of this server. speculation: counts
    of each arm that is drafted.
    """

    def __init__(
        self,
        router: Router,
        model: str,
        context: int = 0,
        restarts: Callable[[], dict[str, int]] = dict,
        resident_bytes: Callable[[], Mapping[str, float]] = dict,
        speculation: Callable[[], Mapping[str, SpeculationCounts]] = dict,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._router, self._model = router, model
        labels = ["model_name", "arm"]
        self._histograms = {
            name: Histogram(
                name,
                text,
                labels,
                registry=registry,
                buckets=BUCKETS_TOKENS if name.endswith("tokens") else BUCKETS_S,
            )
            for name, text in HISTOGRAMS.items()
        }
        self._prompt_tokens, self._output_tokens = (
            Counter(name, text, labels, registry=registry)
            for name, text in (
                ("vllm:prompt_tokens", "prompt tokens of the requests that started"),
                ("vllm:generation_tokens", "output tokens"),
            )
        )
        self._success = Counter(
            "vllm:request_success",
            "requests that ended with an answer",
            [*labels, "finished_reason"],
            registry=registry,
        )
        self._requests = Counter(
            "workbench_requests", "requests that ended", ["arm", "finish_reason"], registry=registry
        )
        self._responses = Counter(
            "workbench_http_responses", "HTTP answers", ["path", "status"], registry=registry
        )
        self._switches = Counter(
            "workbench_switches",
            "changes of the route",
            ["from_arm", "to_arm", "cause"],
            registry=registry,
        )
        # A counter that appears with its first event hides that one from rate() and increase().
        for arm in router.arms:
            for reason in get_args(FinishReason):
                self._requests.labels(arm, reason)
            for other, cause in product(router.arms, get_args(Cause)):
                self._switches.labels(arm, other, cause)
        registry.register(_Scraped(self._counts_now))
        for name, text, label, values in (
            ("vllm:num_requests_running", "requests that hold a slot", "arm", self._running),
            ("vllm:num_requests_waiting", "requests that wait for one", None, self._waiting),
            ("vllm:kv_cache_usage_perc", "share of the slots' tokens in use, 0 to 1", "arm",
             lambda: self._kv_usage(context)),
            ("workbench_route_weight", "share of the requests", "arm", self._weights),
            ("workbench_arm_out", "1: it takes no requests", "arm", self._out),
            ("workbench_rule_evidence", "against the candidate, as a share of what takes it back",
             None, lambda: {"": router.trial.evidence()}),
            ("workbench_resident_bytes", "memory of a process", "process", resident_bytes),
        ):  # fmt: skip
            registry.register(_Gauges(name, text, label, model, values))
        self._restarts, self._speculation = restarts, speculation
        self.energy: Callable[[], Iterator[Metric]] = lambda: iter(())
        """Families of what meters have counted so far."""
        self.replicas: Callable[[], Iterator[Metric]] = lambda: iter(())
        """Families of the servers behind each arm."""
        router.on_finished, router.on_switch = self._finished, self._switched
        router.on_gap = self.gap

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, path: str, status: int) -> None:
        """An HTTP request has got its status; 499 where its client left first."""
        self._responses.labels(path, str(status)).inc()

    def gap(self, routed: RoutedRequest, seconds: float) -> None:
        """Between two of its tokens."""
        self._observe("vllm:inter_token_latency_seconds", routed.arm or "none", seconds)

    def _observe(self, name: str, arm: str, value: float) -> None:
        self._histograms[name].labels(self._model, arm).observe(value)

    def _finished(self, routed: RoutedRequest) -> None:
        arm, reason = routed.arm or "none", routed.finish_reason or "error"
        self._requests.labels(arm, reason).inc()
        prompt, output = counted(routed)
        if routed.arm and prompt is not None:
            self._prompt_tokens.labels(self._model, arm).inc(prompt)
        self._output_tokens.labels(self._model, arm).inc(output or 0)
        if routed.started_s is not None:
            waited_s = routed.started_s - routed.arrived_s
            self._observe("vllm:request_queue_time_seconds", arm, waited_s)
        first_s, ended_s = routed.first_token_s, routed.ended_s
        if first_s is not None and _by_tokens(routed):
            self._observe("vllm:time_to_first_token_seconds", arm, first_s - routed.arrived_s)
            if routed.started_s is not None:
                prefill_s = first_s - routed.started_s
                self._observe("vllm:request_prefill_time_seconds", arm, prefill_s)
        if reason not in COUNTED_ENDS or ended_s is None:
            return
        self._success.labels(self._model, arm, reason).inc()
        self._observe("vllm:e2e_request_latency_seconds", arm, ended_s - routed.arrived_s)
        if prompt is not None:
            self._observe("vllm:request_prompt_tokens", arm, prompt)
        if output is not None:
            self._observe("vllm:request_generation_tokens", arm, output)
        if first_s is not None and _by_tokens(routed):
            decode_s = ended_s - first_s
            self._observe("vllm:request_decode_time_seconds", arm, decode_s)
            if output is not None and output > 1:
                tpot_s = decode_s / (output - 1)
                self._observe("vllm:request_time_per_output_token_seconds", arm, tpot_s)

    def _switched(self, switch: Switch) -> None:
        self._switches.labels(switch.from_arm, switch.to_arm, switch.cause).inc()

    def _running(self) -> dict[str, float]:
        return {arm.name: float(arm.running) for arm in self._router.arms.values()}

    def _waiting(self) -> dict[str, float]:
        return {"": float(self._router.waiting)}

    def _out(self) -> dict[str, float]:
        return {arm.name: float(arm.out is not None) for arm in self._router.arms.values()}

    def _weights(self) -> dict[str, float]:
        route = self._router.route
        weights = dict.fromkeys(self._router.arms, 0.0)
        weights[self._router.fallback] = 1.0 - route.weight
        return weights | {route.arm: route.weight}

    def _kv_usage(self, context: int) -> dict[str, float]:
        """Of the requests under way, prompt and output; nothing of upstreams, whose caches are
        their own."""
        if not context:
            return {}
        held = self._router.held_tokens()
        return {name: held[name] / (arm.slots * context) for name, arm in self._router.arms.items()}

    def _counts_now(self) -> Iterator[Metric]:
        """Counters that others keep."""
        for name, text, value in (
            ("workbench_requests_saved", "requests that another arm, or another replica, answered "
             "because their own was out", self._router.saved),
            ("workbench_requests_continued", "of those saved, the ones that had some of their "
             "answer already", self._router.continued),
        ):  # fmt: skip
            yield CounterMetricFamily(name, text, value=value)
        restarts = CounterMetricFamily(
            "workbench_arm_restarts", "starts of an arm's process after its first", labels=["arm"]
        )
        for arm, count in self._restarts().items():
            restarts.add_metric([arm], count)
        yield restarts
        yield from self._drafted()
        yield from self.replicas()
        yield from self.energy()

    def _drafted(self) -> Iterator[Metric]:
        """Of arms that are drafted, since their processes started."""
        speculation = self._speculation()
        for name, text, own in (
            ("vllm:spec_decode_num_drafts", "texts in steps that a draft guessed for", "proposals"),
            ("vllm:spec_decode_num_draft_tokens", "tokens that a draft guessed", "guessed"),
            ("vllm:spec_decode_num_accepted_tokens", "of those, the ones that were right",
             "accepted"),
        ):  # fmt: skip
            family = CounterMetricFamily(name, text, labels=["model_name", "arm", "draft"])
            for arm, counts in speculation.items():
                for draft, of in counts.drafts.items():
                    family.add_metric([self._model, arm, draft], getattr(of, own))
            yield family
        for name, text, own in (
            ("workbench_verifications", "texts in steps that verify guesses, or none",
             "verifications"),
            ("workbench_verified_tokens", "tokens that came out of them", "written"),
        ):  # fmt: skip
            family = CounterMetricFamily(name, text, labels=["arm"])
            for arm, counts in speculation.items():
                family.add_metric([arm], getattr(counts, own))
            yield family


class _Scraped(Collector):
    """Families that are made when they are asked for."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()

    def describe(self) -> list[Metric]:
        return []


class _Gauges(_Scraped):
    """A gauge whose children are what there is now. vLLM's have its label ``model_name``."""

    def __init__(
        self,
        name: str,
        text: str,
        label: str | None,
        model: str,
        values: Callable[[], Mapping[str, float]],
    ) -> None:
        common = {"model_name": model} if name.startswith("vllm:") else {}

        def families() -> Iterator[Metric]:
            family = Metric(name, text, "gauge")
            for own, value in values().items():
                family.add_sample(name, common | ({label: own} if label else {}), value)
            yield family

        super().__init__(families)
