"""layers.metrics: the text format, and every counter of a server in it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from picows_fast.layers.metrics import (
    CONTENT_TYPE,
    Metric,
    metrics_response,
    render_metrics,
    server_metrics,
)
from picows_fast.server.limits import REFUSAL_REASONS, ConnectionTable
from picows_fast.states import WSDisconnectCause
from picows_fast.stats import TrafficStats

# A line of the text format 0.0.4, as Prometheus' documentation gives its grammar.
SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"(?:\{(?P<labels>[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\\"n])*\""
    r"(?:,[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\\"n])*\")*)\})?"
    r" (?P<value>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?|NaN|[+-]Inf)"
)


def samples(text: bytes) -> dict[str, float]:
    """What a scraper reads: name and labels, value. Every name was declared before."""
    assert text.endswith(b"\n")
    declared: set[str] = set()
    found: dict[str, float] = {}
    for line in text.decode().splitlines():
        if match := re.fullmatch(r"# TYPE (\S+) (counter|gauge|untyped)", line):
            assert match[1] not in declared
            declared.add(match[1])
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match["name"] in declared
            assert line.rpartition(" ")[0] not in found
            found[line.rpartition(" ")[0]] = float(match["value"])
    return found


def test_format() -> None:
    text = render_metrics(
        [
            Metric("feed_messages_total", "counter", "Messages\npublished \\ sent.", 12),
            Metric("temperature", "gauge", "", [({"room": 'a "b"\n\\'}, 1.5), ({}, -2)]),
            Metric("none", "untyped", "No value yet.", []),
        ]
    )
    assert text == (
        b"# HELP feed_messages_total Messages\\npublished \\\\ sent.\n"
        b"# TYPE feed_messages_total counter\n"
        b"feed_messages_total 12\n"
        b"# HELP temperature \n"
        b"# TYPE temperature gauge\n"
        b'temperature{room="a \\"b\\"\\n\\\\"} 1.5\n'
        b"temperature -2\n"
        b"# HELP none No value yet.\n"
        b"# TYPE none untyped\n"
    )
    assert len(samples(text)) == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (2**70, str(2**70)),
        (10**400, str(10**400)),
        (True, "1"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    assert render_metrics([Metric("x", "gauge", "", value)]).endswith(f"\nx {shown}\n".encode())


@pytest.mark.parametrize(
    "metric",
    [
        Metric("a-b", "gauge", "", 1),
        Metric("", "gauge", "", 1),
        Metric("1a", "gauge", "", 1),
        Metric("a\nb", "gauge", "", 1),
        Metric("a", "number", "", 1),
        Metric("a", "gauge", "", [({"b-c": "d"}, 1)]),
        Metric("a", "gauge", "", [({"__b": "d"}, 1)]),
        Metric("a", "gauge", "", [({'b="",c': "d"}, 1)]),
    ],
    ids=str,
)
def test_what_the_format_does_not_have(metric: Metric) -> None:
    with pytest.raises(ValueError):
        render_metrics([metric])


def test_a_metric_comes_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        render_metrics([Metric("a", "gauge", "", 1)] * 2)


def test_every_counter_is_there() -> None:
    table: ConnectionTable[int] = ConnectionTable()
    table.attach(1, None)
    table.opened(1)
    table.attach(2, None)
    table.opened(2)
    table.detach(2, WSDisconnectCause.PEER_FIN)
    table.attach(3, None)
    table.answered(3, 200)
    table.attach(4, None)
    table.refused(4, 403, None)
    table.detach(4, WSDisconnectCause.HANDSHAKE_FAILED)
    table.attach(5, None)
    table.attach(6, None)
    table.detach(6, WSDisconnectCause.PEER_RESET)
    found = samples(render_metrics(server_metrics(table.stats())))
    expected: dict[str, Any] = {
        "connections": 1,
        "handshakes": 1,
        "leaving": 1,
        "accepted_total": 6,
        "opened_total": 2,
        "abandoned_total": 1,
        'answered_total{status="200"}': 1,
    }
    expected |= {f'refused_total{{reason="{reason}"}}': 0 for reason in REFUSAL_REASONS}
    expected |= {f'closed_total{{cause="{cause.name.lower()}"}}': 0 for cause in WSDisconnectCause}
    expected['refused_total{reason="origin"}'] = 1
    expected['closed_total{cause="peer_fin"}'] = 1
    expected |= {
        f'{name}{{direction="{direction}",type="{msg_type}"}}': 0
        for name in ("frames_total", "payload_bytes_total")
        for direction in ("received", "sent")
        for msg_type in TrafficStats().by_type
    }
    assert found == {f"picows_fast_{name}": value for name, value in expected.items()}


def test_prefix_and_labels() -> None:
    stats = ConnectionTable[int]().stats()
    found = samples(render_metrics(server_metrics(stats, prefix="feed", labels={"process": "3"})))
    assert found['feed_connections{process="3"}'] == 0
    assert found['feed_refused_total{process="3",reason="origin"}'] == 0


def test_response() -> None:
    response = metrics_response([Metric("a", "gauge", "", 1)])
    assert response.status == 200
    assert response.headers["Content-Type"] == CONTENT_TYPE
    assert response.body is not None
    assert samples(response.body) == {"a": 1}
