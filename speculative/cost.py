"""What a step of the model costs, by how many requests and how many tokens of each it checks. Pure: numpy only."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


class CostTable:
    """Seconds of a step, from measurements at some batch sizes and widths.

    Width 1 is plain decode; width w checks w - 1 draft tokens of each request besides the newest one. Between two
    measured batch sizes the time is on the line through them, below the smallest it is the smallest's (the batch
    is padded), and above the largest it is infinite: that width cannot run there. A larger batch or width is never
    cheaper than a smaller one: measurements are noisy, and a policy would chase the noise.

    Attributes:
        widths: ascending; the first is 1.
        max_batch: the largest batch size measured at any width.
    """

    def __init__(self, measurements: Mapping[tuple[int, int], float | None]) -> None:
        """Args:
            measurements: (batch size, width) to seconds; None: that pair cannot run (no graph was captured), nor
                can the smaller batches that would be padded to it.

        Raises:
            ValueError: no width 1, or a size or time that is not positive.
        """
        for (batch, width), seconds in measurements.items():
            if batch < 1 or width < 1 or not (seconds is None or 0 < seconds < float("inf")):
                msg = (
                    f"the cost of batch {batch} at width {width} is given as {seconds}: sizes must be 1 or "
                    "more, and times above 0 seconds (None where that pair cannot run)"
                )
                raise ValueError(msg)
        self._measurements = dict(measurements)
        self.widths = tuple(sorted({width for _, width in measurements}))
        if not any(width == 1 and seconds is not None for (_, width), seconds in measurements.items()):
            msg = (
                f"costs are given for widths {list(self.widths)}: width 1, plain decode, must be measured too"
            )
            raise ValueError(msg)
        self.max_batch = max(batch for batch, _ in measurements)
        self._seconds = self._dense()
        self._seconds.setflags(write=False)

    def _dense(self) -> Float64:
        """Seconds by batch size and width, float64 [max_batch + 2, widths]; the last row stands for all above."""
        lines, runs = zip(*(self._line(width) for width in self.widths), strict=True)
        monotone = np.maximum.accumulate(np.stack(lines, axis=1), axis=1)
        return np.where(np.stack(runs, axis=1), monotone, np.inf)

    def _line(self, width: int) -> tuple[Float64, NDArray[np.bool_]]:
        """One width's seconds by batch size, and where it can run at all, both [max_batch + 2]."""
        sizes = np.arange(self.max_batch + 2)
        points = sorted((batch, cost) for (batch, of), cost in self._measurements.items() if of == width)
        measured = [(batch, cost) for batch, cost in points if cost is not None]
        if not measured:
            return np.zeros(len(sizes)), np.zeros(len(sizes), bool)
        batches, costs = zip(*measured, strict=True)
        runs = sizes <= batches[-1]
        before = -1
        for batch, cost in points:
            if cost is None:
                runs[before + 1 : batch + 1] = False
            before = batch
        return np.interp(sizes, batches, np.maximum.accumulate(costs)), runs

    @classmethod
    def linear(
        cls, widths: Iterable[int], max_batch: int, *, constant: float = 1.0, per_token: float = 1.0
    ) -> "CostTable":
        """A model without measurements: `constant + per_token * batch * width` seconds.

        Args:
            widths: with or without 1.
            max_batch: the largest batch size that can run.
            constant: seconds of reading the weights once, or any unit: policies look at ratios alone.
            per_token: seconds of one token more.
        """
        return cls(
            {
                (batch, width): constant + per_token * batch * width
                for width in {1, *widths}
                for batch in {1, max_batch}
            }
        )

    def at(self, batch: int) -> Float64:
        """Seconds at every width, float64 [widths]; read-only. Infinite where a width cannot run."""
        return self._seconds[min(batch, self.max_batch + 1)]

    def cost(self, batch: int, width: int) -> float:
        """Seconds of a step; infinite where it cannot run.

        Raises:
            ValueError: a width that was never measured.
        """
        if width not in self.widths:
            msg = f"width {width} has no cost: those of widths {list(self.widths)} were given"
            raise ValueError(msg)
        return float(self.at(batch)[self.widths.index(width)])

    def to_dict(self) -> dict[str, Any]:
        """The measurements as JSON can hold them; `from_dict` reads them."""
        rows = [[batch, width, seconds] for (batch, width), seconds in sorted(self._measurements.items())]
        return {"batch_width_seconds": rows}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "CostTable":
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            measurements = {
                (int(batch), int(width)): cost for batch, width, cost in told["batch_width_seconds"]
            }
        except (KeyError, TypeError, ValueError) as error:
            msg = (
                'a cost table is {"batch_width_seconds": [[batch, width, seconds], ...]}, seconds null where '
                f"that pair cannot run; given was {str(told)[:100]}"
            )
            raise ValueError(msg) from error
        return cls(measurements)
