"""Prometheus' text format, version 0.0.4, and a server's statistics in it.

Owns the format and the names of the metrics. What is counted is ``Server.stats``'s, where a page
of it is served the listener factory's:

    @routes.http("/metrics")
    def metrics(request):
        return metrics_response(server_metrics(server.stats()))
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from ..protocol.http.messages import WSUpgradeResponse
from ..server.limits import ServerStats

__all__ = ["CONTENT_TYPE", "Metric", "metrics_response", "render_metrics", "server_metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_METRIC_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_TYPES: Final = ("counter", "gauge", "untyped")

Samples = Sequence[tuple[Mapping[str, str], float]]


class Metric(NamedTuple):
    """One metric: its name, type and explanation, and its values, each with its labels.

    `type` is "counter", "gauge" or "untyped"; `values` a number, or pairs (labels, number).
    """

    name: str
    type: str
    help: str
    values: float | Samples


def server_metrics(
    stats: ServerStats, *, prefix: str = "picows_fast", labels: Mapping[str, str] | None = None
) -> list[Metric]:
    """What a server has counted, as metrics whose names begin with `prefix`.

    `labels` are added to each value, to tell several servers or processes apart. Every reason and
    cause is there from the start, with 0: a rate over something that appears with its first event
    would miss this event.
    """
    common = dict(labels or {})

    def metric(name: str, kind: str, text: str, values: Samples) -> Metric:
        return Metric(f"{prefix}_{name}", kind, text, values)

    def one(value: float) -> Samples:
        return [(common, value)]

    def by(label: str, values: Mapping[str, float]) -> Samples:
        return [({**common, label: key}, value) for key, value in values.items()]

    def traffic(field: str) -> Samples:
        return [
            ({**common, "direction": direction, "type": name}, getattr(count, field))
            for direction, counts in (("received", stats.received), ("sent", stats.sent))
            for name, count in counts.by_type.items()
        ]

    answered = {str(status): count for status, count in sorted(stats.answered.items())}
    closed = {cause.name.lower(): count for cause, count in stats.closed.items()}
    return [
        metric("connections", "gauge", "Open WebSocket connections.", one(stats.connections)),
        metric("handshakes", "gauge", "Connections without a response.", one(stats.handshakes)),
        metric("leaving", "gauge", "Connections answered by plain HTTP.", one(stats.leaving)),
        metric("accepted_total", "counter", "Connections accepted.", one(stats.accepted)),
        metric("opened_total", "counter", "Handshakes that opened a WebSocket.", one(stats.opened)),
        metric(
            "abandoned_total", "counter", "Connections without a request.", one(stats.abandoned)
        ),
        metric(
            "refused_total",
            "counter",
            "Requests that the server refused, by reason.",
            by("reason", stats.refused),
        ),
        metric(
            "answered_total",
            "counter",
            "Responses of plain HTTP that the application chose, by status.",
            by("status", answered),
        ),
        metric(
            "closed_total",
            "counter",
            "WebSocket connections that have ended, by cause.",
            by("cause", closed),
        ),
        metric("frames_total", "counter", "Frames, by direction and type.", traffic("frames")),
        metric(
            "payload_bytes_total",
            "counter",
            "Bytes of payload, by direction and type of their frame.",
            traffic("payload_bytes"),
        ),
    ]


def render_metrics(metrics: Iterable[Metric]) -> bytes:
    """The metrics in Prometheus' text format 0.0.4.

    Raises ValueError for a name, a type or a label that the format does not have, and for a name
    that comes twice.
    """
    lines = []
    seen = set()
    for metric in metrics:
        if _METRIC_NAME.fullmatch(metric.name) is None:
            raise ValueError(f"{metric.name!r} is not the name of a metric")
        if metric.type not in _TYPES:
            raise ValueError(f"type of {metric.name} must be one of {_TYPES}, got {metric.type!r}")
        if metric.name in seen:
            raise ValueError(f"metric {metric.name} comes twice")
        seen.add(metric.name)
        lines.append(f"# HELP {metric.name} {_escape(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.type}")
        values = metric.values
        for labels, value in values if isinstance(values, Sequence) else [({}, values)]:
            lines.append(f"{metric.name}{_labels(labels)} {_number(value)}")
    return "".join(f"{line}\n" for line in lines).encode()


def metrics_response(metrics: Iterable[Metric]) -> WSUpgradeResponse:
    """The response of a metrics page; raises as `render_metrics`."""
    return WSUpgradeResponse.create_ok_response(
        render_metrics(metrics), {"Content-Type": CONTENT_TYPE}
    )


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_quoted(text: str) -> str:
    return _escape(text).replace('"', '\\"')


def _labels(labels: Mapping[str, str]) -> str:
    for name in labels:
        if _LABEL_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not the name of a label")
    quoted = (f'{name}="{_escape_quoted(str(value))}"' for name, value in labels.items())
    return "{" + ",".join(quoted) + "}" if labels else ""


def _number(value: float) -> str:
    if isinstance(value, int):
        return repr(int(value))
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
