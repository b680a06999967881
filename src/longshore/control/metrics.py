"""The figures of all workers as Prometheus' text: names, labels, help.

The only place that knows metric names; they are public, and each stands in the reference.  Counters and histograms are
sums over all workers that ever were, so they never go back; gauges are one for each worker that lives, with its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from longshore.errors import ConfigError
from longshore.supervisor.meter import COUNTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from longshore.supervisor.region import Histogram

__all__ = ("CONTENT_TYPE", "METRICS", "Metric", "require", "text")

#: The text format's media type; OpenMetrics would not let a gauge and a counter be called alike.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """One name on the page."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    help: str
    source: str
    """A counter or histogram of `meter`, which may end in a colon; "" for what is asked for."""
    label: str = ""
    """The label of its kinds."""


METRICS = (
    Metric("longshore_connections_total", "counter", "Connections accepted.", "accepted"),
    Metric("longshore_connections_closed_total", "counter", "Connections that ended, by cause.", "closed:", "cause"),
    Metric("longshore_connections_rejected_total", "counter", "Connections turned away.", "rejected:", "limit"),
    Metric("longshore_connection_duration_seconds", "histogram", "How long connections lasted.", "connection_seconds"),
    Metric("longshore_received_bytes_total", "counter", "Bytes received.", "bytes_received"),
    Metric("longshore_sent_bytes_total", "counter", "Bytes sent.", "bytes_sent"),
    Metric("longshore_unsent_bytes_total", "counter", "Bytes written that never left.", "bytes_unsent"),
    Metric("longshore_messages_total", "counter", "Messages received.", "messages_received"),
    Metric("longshore_datagrams_total", "counter", "Datagrams received.", "datagrams"),
    Metric("longshore_datagrams_dropped_total", "counter", "Datagrams lost in the server.", "datagrams_dropped"),
    Metric("longshore_handler_failures_total", "counter", "Exceptions that left a handler or hook.", "failures"),
    Metric("longshore_handler_blockings_total", "counter", "Times something kept a reactor too long.", "blockings"),
    Metric("longshore_accept_errors_total", "counter", "Failures of accept(2).", "accept_errors"),
    Metric("longshore_slow_receivers_total", "counter", "Receivers too slow for a broadcast.", "slow:", "action"),
    Metric("longshore_limit_near_total", "counter", "Times a limit was at 80 percent.", "near:", "limit"),
    Metric(
        "longshore_message_seconds", "histogram", "From reading messages to having answered them.", "message_seconds"
    ),
    Metric("longshore_pool_tasks_total", "counter", "Tasks of the pool that are over.", "tasks:", "outcome"),
    Metric("longshore_pool_deaths_total", "counter", "Processes of the pool that have died.", "pool_deaths"),
    Metric("longshore_broker_requests_total", "counter", "Requests to the broker of shared primitives.", ""),
    Metric("longshore_reactor_lag_seconds", "histogram", "How late reactors come to what is due.", "lag_seconds"),
    Metric("longshore_connections", "gauge", "Connections open now.", "connections", "worker"),
    Metric(
        "longshore_pending_bytes", "gauge", "Bytes written that the kernel has not taken.", "bytes_pending", "worker"
    ),
    Metric("longshore_pool_tasks_waiting", "gauge", "Tasks that do not run yet.", "tasks_waiting", "worker"),
    Metric("longshore_pool_tasks_running", "gauge", "Tasks that run now.", "tasks_running", "worker"),
    Metric("longshore_pool_processes", "gauge", "Processes of the pool.", "pool_processes", "worker"),
    Metric("longshore_broker_clients", "gauge", "Connections to the broker; a thread that shares has one.", ""),
    Metric("longshore_broker_names", "gauge", "Locks, queues and other names that it keeps.", ""),
    Metric("longshore_broker_waiting", "gauge", "Requests that wait for others, as for a lock.", ""),
    Metric("longshore_worker_info", "gauge", "One for each worker that lives.", "", "worker, pid, generation"),
    Metric("longshore_worker_start_time_seconds", "gauge", "When it was started, since the epoch.", "", "worker"),
    Metric("longshore_worker_resident_memory_bytes", "gauge", "Its memory.", "", "worker"),
    Metric("longshore_worker_responding", "gauge", "1 if it has answered this scrape.", "", "worker"),
    Metric("longshore_workers_wanted", "gauge", "Workers that there should be.", ""),
    Metric("longshore_limit", "gauge", "Limits that are numbers, as set now.", "", "limit"),
    Metric("longshore_ready", "gauge", "1 while new connections are welcome.", ""),
    Metric("longshore_certificate_expiry_timestamp_seconds", "gauge", "When its certificate ends.", "", "worker"),
    Metric("longshore_info", "gauge", "What is served, and how.", "", "version, handler, strategy, reactor"),
)


def require() -> None:
    """Make sure that metrics can be published.

    Raises:
        ConfigError: the package that writes the text is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ConfigError(
            "metrics need the prometheus-client package, which is not installed", hint="pip install longshore[metrics]"
        ) from None


def text(
    total: Mapping[str, int | Histogram], workers: Mapping[int, Mapping[str, Any]], asked: Mapping[str, Any]
) -> bytes:
    """The page.

    Args:
        total: sums over all workers, as `SharedCounters.total` has them.
        workers: the figures of each that lives, by number.
        asked: by metric name what only the workers and the supervisor know: a list of (labels, value) each.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(total, workers, asked))
    return generate_latest(registry)


class _Page:
    """What prometheus_client calls a collector."""

    def __init__(
        self, total: Mapping[str, int | Histogram], workers: Mapping[int, Mapping[str, Any]], asked: Mapping[str, Any]
    ) -> None:
        self._total = total
        self._workers = workers
        self._asked = asked

    def collect(self) -> Iterator[Any]:
        for metric in METRICS:
            if not metric.source and metric.name not in self._asked:
                continue
            if metric.kind == "counter":
                yield self._counter(metric)
            elif metric.kind == "histogram":
                yield self._histogram(metric)
            else:
                yield self._gauge(metric)

    def _counter(self, metric: Metric) -> Any:
        from prometheus_client.core import CounterMetricFamily

        labels = [metric.label] if metric.label else []
        family = CounterMetricFamily(metric.name, metric.help, labels=labels)
        for values, value in self._asked.get(metric.name, ()):
            family.add_metric(values, value)
        for source in COUNTERS:
            if source == metric.source or (metric.label and source.startswith(metric.source)):
                kind = source.partition(":")[2]
                family.add_metric([kind] if metric.label else [], int(self._total.get(source, 0)))  # type: ignore[arg-type]
        return family

    def _histogram(self, metric: Metric) -> Any:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(metric.name, metric.help)
        histogram: Any = self._total[metric.source]
        buckets, count = [], 0
        for bound, own in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            count += own
            buckets.append((bound, count))
        family.add_metric([], buckets, histogram.sum)
        return family

    def _gauge(self, metric: Metric) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        labels = [name for name in metric.label.split(", ") if name]
        family = GaugeMetricFamily(metric.name, metric.help, labels=labels)
        if metric.source:
            for worker, figures in sorted(self._workers.items()):
                family.add_metric([str(worker)], figures.get(metric.source, 0))
        for values, value in self._asked.get(metric.name, ()):
            family.add_metric([str(each) for each in values], value)
        return family
