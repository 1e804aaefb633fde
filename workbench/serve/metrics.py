"""What /metrics says: vLLM's names where the meaning is the same, ``workbench_`` elsewhere.

vLLM measures its latencies from the arrival at the server; so do these. The buckets go down
to half a millisecond, because a 1-token request on a small model ends within a few.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from workbench.serve.routed import RoutedRequest, Switch
from workbench.serve.router import Router

BUCKETS_S = tuple(m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5))[2:]


class Metrics:
    """The collectors of one server, in a registry of their own."""

    def __init__(self, router: Router, model: str) -> None:
        self.registry = registry = CollectorRegistry()
        self._router, self._model = router, model

        def gauge(name: str, text: str, value: object) -> None:
            made = Gauge(name, text, ["model_name"], registry=registry)
            made.labels(model).set_function(value)

        gauge("vllm:num_requests_running", "requests that hold a slot", lambda: router.running)
        gauge("vllm:num_requests_waiting", "requests that wait for one", lambda: router.waiting)
        self._counters = {
            name: Counter(name, text, ["model_name"], registry=registry)
            for name, text in (
                ("vllm:prompt_tokens", "prompt tokens of the requests that started"),
                ("vllm:generation_tokens", "output tokens"),
            )
        }
        self._success = Counter(
            "vllm:request_success",
            "requests that ended with an answer",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._ttft, self._e2e, self._arm_ttft = (
            Histogram(name, text, [label], registry=registry, buckets=BUCKETS_S)
            for name, text, label in (
                ("vllm:time_to_first_token_seconds", "arrival to first token", "model_name"),
                ("vllm:e2e_request_latency_seconds", "arrival to the end", "model_name"),
                ("workbench_time_to_first_token_seconds", "arrival to first token", "arm"),
            )
        )
        self._requests = Counter(
            "workbench_requests", "requests that ended", ["arm", "finish_reason"], registry=registry
        )
        saved = Gauge(
            "workbench_requests_saved",
            "requests that another arm answered because their own was out",
            registry=registry,
        )
        saved.set_function(lambda: router.saved)
        continued = Gauge(
            "workbench_requests_continued",
            "of those saved, the ones that had some of their answer already",
            registry=registry,
        )
        continued.set_function(lambda: router.continued)
        self._refused = Counter(
            "workbench_requests_refused",
            "requests answered with an error before any token",
            ["status"],
            registry=registry,
        )
        self._switches = Counter(
            "workbench_switches", "changes of the route", ["from_arm", "to_arm"], registry=registry
        )
        weight = Gauge("workbench_route_weight", "share of requests", ["arm"], registry=registry)
        running = Gauge("workbench_requests_running", "slots in use", ["arm"], registry=registry)
        out = Gauge("workbench_arm_out", "1: it takes no requests", ["arm"], registry=registry)
        for arm in router.arms.values():
            out.labels(arm.name).set_function(lambda arm=arm: float(arm.out is not None))
            weight.labels(arm.name).set_function(lambda name=arm.name: self._weight(name))
            running.labels(arm.name).set_function(lambda arm=arm: arm.running)
        router.on_finished, router.on_switch = self._finished, self._switched

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def refused(self, status: int) -> None:
        """A request got no token, only an error with this status."""
        self._refused.labels(str(status)).inc()

    def _weight(self, arm: str) -> float:
        route = self._router.route
        if arm == route.arm:
            return route.weight
        return 1.0 - route.weight if arm == self._router.fallback else 0.0

    def _finished(self, routed: RoutedRequest) -> None:
        arm, reason = routed.arm or "none", routed.finish_reason or "error"
        self._requests.labels(arm, reason).inc()
        if routed.arm:
            prompt = self._counters["vllm:prompt_tokens"].labels(self._model)
            prompt.inc(len(routed.request.prompt_tokens))
        self._counters["vllm:generation_tokens"].labels(self._model).inc(routed.tokens)
        if routed.first_token_s is not None:
            ttft_s = routed.first_token_s - routed.arrived_s
            self._ttft.labels(self._model).observe(ttft_s)
            self._arm_ttft.labels(arm).observe(ttft_s)
        if reason in ("stop", "length"):
            self._success.labels(self._model, reason).inc()
            self._e2e.labels(self._model).observe(routed.ended_s - routed.arrived_s)

    def _switched(self, switch: Switch) -> None:
        self._switches.labels(switch.from_arm, switch.to_arm).inc()
