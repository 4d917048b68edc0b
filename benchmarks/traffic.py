"""A synthetic trace of requests with quiet and burst phases, shaped on public statistics. Pure: same seed, same trace.

Lengths are lognormal, each kind of traffic by a median and a mean, in tokens:

| kind | share | prompt | answer | after |
|---|---|---|---|---|
| code | 0.70 | 1,469 / 2,048 | 13 / 28 | Azure's LLM inference trace of 2023, code (arXiv 2311.18677) |
| agent | 0.15 | 6,346 / 8,596 | 30 / 182 | Mooncake's tool and agent trace (FAST '25, table 2) |
| conversation | 0.15 | 6,909 / 12,035 | 210 / 343 | Mooncake's conversation trace (the same) |

Of the conversations' answers only the mean is Mooncake's; their spread is that of Azure's conversations (129 / 211).
The means are before lengths are cut to `longest_in` and `longest_out`. Shares, phases and rates are chosen: quiet
phases come at the code trace's 2.57 requests a second, bursts at several times that (in Azure's week of 2024 the
busiest hour has 33 times the requests of the quietest). Gaps between requests are gamma distributed with a coefficient
of variation over 1, burstier than Poisson, as arXiv 2401.17644 reports of such services; their sum is that of the
phase, so that the number of requests is exactly its rate times its length.
"""

import math
import random
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of traffic.

    Attributes:
        share: of all requests.
        tokens_in: median and mean of a prompt.
        tokens_out: median and mean of an answer.
    """

    share: float
    tokens_in: tuple[float, float]
    tokens_out: tuple[float, float]


KINDS = {
    "code": Kind(0.70, (1469, 2048), (13, 28)),
    "agent": Kind(0.15, (6346, 8596), (30, 182)),
    "conversation": Kind(0.15, (6909, 12035), (210, 343)),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How a trace goes on in time, and its limits.

    Attributes:
        seconds: length of the trace.
        period: seconds from the beginning of a quiet phase to that of the next.
        burst: seconds at the end of each period that are a burst.
        quiet_rate: requests a second in quiet phases.
        burst_rate: requests a second in bursts.
        variation: standard deviation of the gaps over their mean.
        longest_in: tokens that a prompt is cut to.
        longest_out: tokens that an answer is cut to.

    Raises:
        ValueError: a value is out of its range.
    """

    seconds: float = 300
    period: float = 60
    burst: float = 15
    quiet_rate: float = 2.57
    burst_rate: float = 22
    variation: float = 1.5
    longest_in: int = 32768
    longest_out: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.burst < self.period <= self.seconds:
            message = (
                f"0 < burst < period <= seconds is wanted, not {self.burst}, {self.period}, {self.seconds}"
            )
            raise ValueError(message)
        if not 0 < self.quiet_rate <= self.burst_rate or self.variation <= 0:
            message = f"0 < quiet_rate <= burst_rate and variation > 0 are wanted: {self}"
            raise ValueError(message)
        if min(self.longest_in, self.longest_out) < 1:
            message = f"lengths of 1 token or more are wanted: {self.longest_in}, {self.longest_out}"
            raise ValueError(message)

    def phases(self) -> list[tuple[str, float, float]]:
        """Name, begin and end of each phase; the last is cut at the trace's end."""
        found = []
        for index in range(math.ceil(self.seconds / self.period)):
            begin, end = index * self.period, (index + 1) * self.period
            found += [("quiet", begin, end - self.burst), ("burst", end - self.burst, end)]
        return [(name, begin, min(end, self.seconds)) for name, begin, end in found if begin < self.seconds]


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace.

    Attributes:
        at: seconds from the beginning.
        tokens_in: tokens of the prompt.
        tokens_out: tokens of the answer.
        phase: "quiet" or "burst".
        kind: of `KINDS`.
    """

    at: float
    tokens_in: int
    tokens_out: int
    phase: str
    kind: str


def trace(shape: Shape, seed: int = 0, scale: float = 1.0) -> list[Request]:
    """A trace, sorted by time.

    Args:
        shape: of the traffic.
        seed: of all that is drawn.
        scale: factor of both rates.
    """
    draw = random.Random(seed)
    rates = {"quiet": scale * shape.quiet_rate, "burst": scale * shape.burst_rate}
    made = []
    for phase, begin, end in shape.phases():
        for at in _arrivals(draw, begin, end, round(rates[phase] * (end - begin)), shape.variation):
            [name] = draw.choices(list(KINDS), [kind.share for kind in KINDS.values()])
            kind = KINDS[name]
            tokens_in = _length(draw, *kind.tokens_in, shape.longest_in)
            made.append(
                Request(at, tokens_in, _length(draw, *kind.tokens_out, shape.longest_out), phase, name)
            )
    return made


def _arrivals(draw: random.Random, begin: float, end: float, count: int, variation: float) -> list[float]:
    """`count` times in [begin, end), the gaps between them and to both ends gamma distributed."""
    form = variation**-2
    sums = list(accumulate(draw.gammavariate(form, 1) for _ in range(count + 1)))
    return [begin + (end - begin) * at / sums[-1] for at in sums[:-1]]


def _length(draw: random.Random, median: float, mean: float, longest: int) -> int:
    """Lognormal, 1 .. longest."""
    spread = math.sqrt(2 * math.log(mean / median))
    return min(longest, max(1, round(draw.lognormvariate(math.log(median), spread))))
