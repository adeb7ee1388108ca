"""Metrics: what a server tells Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "drnet_requests", "Requests to /predict, by status.", ["status"], registry=registry
        )
        self.latency = Histogram(
            "drnet_latency_seconds", "From the first byte of an image to its answer.",
            buckets=BUCKETS, registry=registry,
        )
        self.answers = Counter(
            "drnet_answers", "Images answered, by option.", ["option"], registry=registry
        )
        self.multiply_adds = Counter(
            "drnet_multiply_adds", "Spent on answered images, all that was run included.",
            registry=registry,
        )

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Adds what is asked for when it is read."""
        Gauge(name, help, registry=self._registry).set_function(value)

    def text(self) -> tuple[bytes, str]:
        """What /metrics answers, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
