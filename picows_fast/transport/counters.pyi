from typing import final

from ..stats import TrafficStats

@final
class SharedTraffic:
    @property
    def received(self) -> TrafficStats: ...
    @property
    def sent(self) -> TrafficStats: ...
