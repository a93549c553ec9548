"""connections: what a server counts, and the limits that follow from it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from picows_fast.server.limits import REFUSAL_REASONS, ConnectionTable, ServerStats, address_key
from picows_fast.states import WSDisconnectCause


def check_sums(stats: ServerStats) -> None:
    refused, answered = sum(stats.refused.values()), sum(stats.answered.values())
    assert stats.accepted == stats.opened + stats.abandoned + stats.handshakes + refused + answered
    assert stats.opened == stats.connections + sum(stats.closed.values())


@pytest.mark.parametrize(
    ("address", "key"),
    [
        (("192.0.2.1", 5000), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5000, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5000, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::", 5000, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:3::6", 5000, 0, 0), "2001:db8:1:3::/64"),
        (("::1", 5000, 0, 0), "::1"),
        (("fe80::1%eth0", 5000, 0, 2), "fe80::1%eth0"),
        (("fe80::2%eth0", 5000, 0, 2), "fe80::2%eth0"),
        ("", None),
        (b"", None),
        ("/run/client.sock", None),
        (b"\0abstract", None),
        (None, None),
        ((), None),
        ((3, 1024), None),  # AF_VSOCK
        (("00:11:22:33:44:55", 1), None),  # AF_BLUETOOTH
    ],
    ids=str,
)
def test_address_key(address: Any, key: str | None) -> None:
    assert address_key(address) == key


def test_limit_of_open_connections() -> None:
    table: ConnectionTable[int] = ConnectionTable(max_connections=2)
    for number in range(5):
        assert table.reason_to_turn_away("a") is None
        table.attach(number, "a")
    for number in range(2):
        assert table.reason_to_refuse("a") is None
        table.opened(number)
    assert table.reason_to_refuse("a") == table.reason_to_refuse(None) == "max_connections"
    table.detach(0, None)
    assert table.reason_to_refuse("a") is None


def test_limit_per_address() -> None:
    table: ConnectionTable[int] = ConnectionTable(max_per_ip=1)
    table.attach(0, "a")
    table.opened(0)
    assert table.reason_to_refuse("a") == "max_connections_per_ip"
    assert table.reason_to_refuse("b") is table.reason_to_refuse(None) is None
    table.detach(0, None)
    assert table.reason_to_refuse("a") is None


@pytest.mark.parametrize(("max_per_ip", "handshakes"), [(1, 32), (100, 100)])
def test_handshakes_of_one_address(max_per_ip: int, handshakes: int) -> None:
    table: ConnectionTable[int] = ConnectionTable(max_per_ip=max_per_ip)
    for number in range(handshakes):
        assert table.reason_to_turn_away("a") is None
        table.attach(number, "a")
    assert table.reason_to_turn_away("a") == "max_connections_per_ip"
    assert table.reason_to_turn_away("b") is table.reason_to_turn_away(None) is None
    table.answered(0, 404)  # and not gone yet
    assert table.reason_to_turn_away("a") is not None
    table.detach(0, None)
    assert table.reason_to_turn_away("a") is None
    table.attach(0, "a")
    table.opened(0)
    assert table.reason_to_turn_away("a") is None


def test_limit_of_handshakes() -> None:
    table: ConnectionTable[int] = ConnectionTable(max_handshakes=2)
    table.attach(0, None)
    assert table.has_room
    table.attach(1, None)
    assert not table.has_room
    assert table.reason_to_turn_away(None) == "max_pending_handshakes"
    table.refused(0, 400, None)
    assert not table.has_room
    table.opened(1)
    assert table.has_room
    table.detach(0, None)
    table.detach(0, None)
    table.attach(2, None)
    assert table.has_room


def test_reasons() -> None:
    table: ConnectionTable[int] = ConnectionTable()
    statuses = {403: "origin", 408: "timeout", 500: "error", 400: "request", 431: "request"}
    for number, (status, reason) in enumerate(statuses.items()):
        table.attach(number, None)
        before = table.stats().refused[reason]
        table.refused(number, status, None)
        assert table.stats().refused[reason] == before + 1
    table.attach(9, None)
    table.refused(9, 503, "max_connections")
    assert table.stats().refused["max_connections"] == 1
    assert set(table.stats().refused) == set(REFUSAL_REASONS)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_sums_are_right(seed: int) -> None:
    """Random lives of connections, beside a count that goes over all of them."""
    chance = random.Random(seed)
    table: ConnectionTable[int] = ConnectionTable(max_per_ip=3, max_connections=20)
    state: dict[int, tuple[str, str | None]] = {}
    for number in range(2000):
        key = chance.choice(["a", "b", "c", None])
        if (reason := table.reason_to_turn_away(key)) is not None:
            table.turned_away(reason)
        else:
            table.attach(number, key)
            state[number] = ("handshake", key)
        chosen = chance.choice(list(state)) if state else None
        if chosen is not None:
            now, its_key = state[chosen]
            match chance.randrange(4):
                case 0 if now == "handshake" and table.reason_to_refuse(its_key) is None:
                    table.opened(chosen)
                    state[chosen] = ("open", its_key)
                case 1 if now == "handshake":
                    table.answered(chosen, chance.choice([200, 404]))
                    state[chosen] = ("leaving", its_key)
                case 2 if now == "handshake":
                    table.refused(chosen, 400, table.reason_to_refuse(its_key))
                    state[chosen] = ("leaving", its_key)
                case 3:
                    table.detach(chosen, chance.choice([*WSDisconnectCause, None]))
                    del state[chosen]
        states = [what for what, _ in state.values()]
        stats = table.stats()
        assert stats.handshakes == states.count("handshake")
        assert stats.leaving == states.count("leaving")
        assert stats.connections == states.count("open") <= 20
        for one in "abc":
            count = list(state.values()).count(("open", one))
            assert count <= 3
            if states.count("open") < 20:
                assert (table.reason_to_refuse(one) is not None) == (count == 3)
        check_sums(stats)
        assert len(table) == len(state)
        assert set(table) == set(state)
    for number in list(table):
        table.detach(number, None)
    assert not table
    assert not table._keys
    assert not table._open_of
    assert not table._pending_of
    check_sums(table.stats())
