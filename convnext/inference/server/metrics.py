"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts of one server, with its process's memory and processor time."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "convnext_requests", "Requests that were answered", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "convnext_request_seconds",
            "From a request's head to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "convnext_batch_size", "Images that the model saw at a time", buckets=_IMAGES, registry=registry
        )
        self.queue = Gauge(
            "convnext_queue_images", "Images that were taken and are not answered yet", registry=registry
        )
        self.images = Counter("convnext_images", "Images whose classes were answered", registry=registry)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
