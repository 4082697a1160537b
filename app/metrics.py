"""Prometheus metrics: seconds, bytes, bounded labels. One registry per application."""

from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)

from app.schemas import Declares

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# OpenTelemetry's http.server.request.duration buckets.
_HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_TENTHS = tuple(round(0.1 * i, 1) for i in range(1, 11))

# One process, one registry: PROMETHEUS_MULTIPROC_DIR, set for others, would have every value in a
# file there.
values.ValueClass = values.MutexValue

# Of the loaded model, by the names that `model.scores.About` has for them.
MODEL_LABELS = ("name", "version", "sha256", "device", "engine", "precision", "dtype")


class Metrics:
    """All metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        r = self.registry
        self.images = Counter(
            "nsnet_images", "Images by outcome: ok, error, cancelled.", ["outcome"], registry=r
        )
        # By checkpoint: another one's shares of verdicts, and its scores, are no drift.
        self.predictions = Counter(
            "nsnet_predictions", "Verdicts given.", ["verdict", "sha256"], registry=r
        )
        self.rejected = Counter(
            "nsnet_rejected", "Requests and images refused, by error code.", ["reason"], registry=r
        )
        self.audit_lost = Counter(
            "nsnet_audit_lost", "Lines of the audit log that could not be written.", registry=r
        )
        self.decoders_replaced = Counter(
            "nsnet_decoders_replaced",
            "Processes that decoded and were replaced: crashed, too_expensive, killed, worn.",
            ["reason"],
            registry=r,
        )
        self.provenance = Counter(
            "nsnet_provenance",
            "Answers by what the file declares of its origin.",
            ["declares"],
            registry=r,
        )
        # From the start: Prometheus knows no increase of a series that is not there yet.
        self.rejected.labels("overloaded")
        for reason in ("crashed", "too_expensive", "killed", "worn"):
            self.decoders_replaced.labels(reason)
        for declares in get_args(Declares):
            self.provenance.labels(declares)
        self.stage = Histogram(
            "nsnet_stage_duration_seconds",
            "Time per stage of an image.",
            ["stage"],
            buckets=_HTTP_BUCKETS,
            registry=r,
        )
        self.batch_size = Histogram(
            "nsnet_batch_size",
            "Images per forward pass.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=r,
        )
        self.queue_depth = Gauge("nsnet_queue_depth", "Looks that wait for the device.", registry=r)
        self.inflight = Gauge(
            "nsnet_inflight_images", "Images admitted and not yet answered.", registry=r
        )
        self.score = Histogram(
            "nsnet_score",
            "Calibrated scores: watch for drift.",
            ["sha256"],
            buckets=_TENTHS,
            registry=r,
        )
        self.cache = Counter(
            "nsnet_cache_requests",
            "Result look-ups: hit, miss, shared (with the same upload under way).",
            ["result"],
            registry=r,
        )
        self.model_info = Gauge("nsnet_model_info", "The loaded model.", MODEL_LABELS, registry=r)
        self.model_load = Gauge(
            "nsnet_model_load_seconds", "Time to load and warm up the model.", registry=r
        )
        self.requests = Counter(
            "http_requests", "HTTP requests.", ["method", "route", "status"], registry=r
        )
        self.request_duration = Histogram(
            "http_request_duration_seconds",
            "HTTP request duration.",
            ["method", "route"],
            buckets=_HTTP_BUCKETS,
            registry=r,
        )

    def render(self) -> bytes:
        """Write the text exposition."""
        return generate_latest(self.registry)
