"""picows_fast.cli.book: the same for the same seed, and books that make sense."""

from __future__ import annotations

import json
from itertools import islice

from picows_fast.cli.book import generate_book


def test_book_is_the_same_for_the_same_seed() -> None:
    first = list(islice(generate_book(1000.0, seed=3), 200))
    assert list(islice(generate_book(1000.0, seed=3), 200)) == first
    assert list(islice(generate_book(1000.0, seed=4), 200)) != first


def test_book_keeps_its_rate_and_sizes() -> None:
    messages = list(islice(generate_book(4000.0), 8001))
    assert [microseconds for microseconds, _ in messages] == [n * 250 for n in range(8001)]
    sizes = sorted(len(text) for _, text in messages)
    assert sizes[0] >= 100
    assert sizes[-1] <= 600
    kinds = [json.loads(text)["type"] for _, text in messages]
    assert 0.1 < kinds.count("trade") / len(kinds) < 0.3


def test_book_never_crosses() -> None:
    books: dict[str, tuple[dict[float, float], dict[float, float]]] = {}
    updates: dict[str, int] = {}
    for number, (_, text) in enumerate(islice(generate_book(1000.0), 20_000), 1):
        message = json.loads(text)
        assert message["seq"] == number
        bids, asks = books.setdefault(message["symbol"], ({}, {}))
        if message["type"] == "trade":
            best = min(asks) if message["side"] == "buy" else max(bids)
            assert float(message["price"]) == best
            assert float(message["size"]) > 0
            continue
        assert message["first_update"] == updates.get(message["symbol"], 0) + 1
        updates[message["symbol"]] = message["last_update"]
        for side, changes in ((bids, message["bids"]), (asks, message["asks"])):
            for price, size in changes:
                if size == "0":
                    del side[float(price)]
                else:
                    assert float(size) > 0
                    side[float(price)] = float(size)
        assert len(bids) <= 20
        assert len(asks) <= 20
        assert not bids or not asks or max(bids) < min(asks)
    assert len(books) == 3
