"""An invented exchange's feed: order-book updates and trades, the same for the same seed.

Applied in order, the updates describe books that never cross. Nothing here knows about time other
than the schedule it is asked for, and nothing is sent from here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

# symbol, decimals of the price, first price in ticks (units of its last decimal), decimals of the
# size, largest usual size
_MARKETS = (
    ("BTC-USD", 2, 64_250_00, 5, 1.5),
    ("ETH-USD", 2, 3_180_00, 4, 20.0),
    ("SOL-USD", 3, 148_250, 2, 400.0),
)
_LEVELS_A_SIDE = 20
_TRADE_SHARE = 0.2
# Any fixed moment does: it keeps the feed a function of its seed.
_FIRST_TIMESTAMP_US = 1_735_689_600_000_000


class _Market:
    """One symbol's book. Prices are whole ticks, as an exchange keeps them."""

    def __init__(
        self,
        rng: random.Random,
        symbol: str,
        price_decimals: int,
        first_price: int,
        size_decimals: int,
        usual_size: float,
    ) -> None:
        self.symbol = symbol
        self.update_id = 0
        self._rng = rng
        self._price_decimals = price_decimals
        self._size_decimals = size_decimals
        self._usual_size = usual_size
        self._mid = first_price
        self._bids: dict[int, str] = {}
        self._asks: dict[int, str] = {}

    def depth(self) -> dict[str, object]:
        """Move the market a little; return the levels that changed. Size "0" takes a level away."""
        rng = self._rng
        self._mid += round(rng.gauss(0.0, 2.0))
        bids: dict[int, str] = {}
        asks: dict[int, str] = {}
        for level in [level for level in self._bids if level >= self._mid]:
            bids[level] = "0"
        for level in [level for level in self._asks if level <= self._mid]:
            asks[level] = "0"
        for _ in range(1 + int(rng.random() * 5)):
            distance = 1 + int(rng.expovariate(0.2))
            if rng.random() < 0.5:
                bids[self._mid - distance] = self._size()
            else:
                asks[self._mid + distance] = self._size()
        self._apply(self._bids, bids, sorted(self._bids | bids)[:-_LEVELS_A_SIDE])
        self._apply(self._asks, asks, sorted(self._asks | asks)[_LEVELS_A_SIDE:])
        first = self.update_id + 1
        self.update_id += len(bids) + len(asks)
        return {
            "type": "depth",
            "symbol": self.symbol,
            "first_update": first,
            "last_update": self.update_id,
            "bids": [[self._price(level), bids[level]] for level in sorted(bids, reverse=True)],
            "asks": [[self._price(level), asks[level]] for level in sorted(asks)],
        }

    @staticmethod
    def _apply(side: dict[int, str], changes: dict[int, str], too_far: list[int]) -> None:
        """Bring one side up to date; levels beyond its depth become part of the changes."""
        for level in too_far:
            if level in side:
                changes[level] = "0"
            else:
                del changes[level]
        for level, size in changes.items():
            if size == "0":
                side.pop(level, None)
            else:
                side[level] = size

    def trade(self, trade_id: int) -> dict[str, object]:
        """A trade at the best price of one side. The caller has made sure that there is one."""
        is_buy = self._rng.random() < 0.5
        level = min(self._asks) if is_buy else max(self._bids)
        return {
            "type": "trade",
            "symbol": self.symbol,
            "trade_id": trade_id,
            "price": self._price(level),
            "size": self._size(),
            "side": "buy" if is_buy else "sell",
            "maker_order": f"{self._rng.getrandbits(64):016x}",
            "taker_order": f"{self._rng.getrandbits(64):016x}",
        }

    @property
    def can_trade(self) -> bool:
        return bool(self._bids and self._asks)

    def _price(self, ticks: int) -> str:
        return f"{ticks / 10**self._price_decimals:.{self._price_decimals}f}"

    def _size(self) -> str:
        # The smallest size is one unit: "0" would take the level away.
        size = self._usual_size * self._rng.random() ** 2
        return f"{max(size, 10**-self._size_decimals):.{self._size_decimals}f}"


def generate_book(rate: float, seed: int = 1) -> Iterator[tuple[int, str]]:
    """Yield (microseconds since the first message, text) for ever, `rate` messages a second.

    The texts are JSON objects of roughly 100 to 500 bytes with a running ``seq``.
    """
    rng = random.Random(seed)
    markets = [_Market(rng, *market) for market in _MARKETS]
    encode = json.JSONEncoder(separators=(",", ":")).encode
    seq = 0
    while True:
        microseconds = int(seq * 1e6 / rate)
        seq += 1
        market = markets[int(rng.random() * len(markets))]
        if market.can_trade and rng.random() < _TRADE_SHARE:
            event = market.trade(seq)
        else:
            event = market.depth()
        event = {"seq": seq, "time": _FIRST_TIMESTAMP_US + microseconds, **event}
        yield microseconds, encode(event)
