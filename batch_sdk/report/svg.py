"""Small plots as SVG text: steps over time, columns on a logarithmic axis, bars with names.

Colours come from the page (`var(--ink)` and so on, `STYLE` has them), so that a plot is light or dark as the page is.
Every shape with a value has a `<title>`, which browsers show as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 40
_ROW_HEIGHT, _NAME_WIDTH, _COUNT_WIDTH = 28, 112, 56
_FEWEST_BINS = 8
_MOST_BIN_LABELS = 8
_MOST_TICKS = 5
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_UNIT_FROM = 3  # a unit is used from three of it on
_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1d2127; --soft: #5d6673; --rule: #dde1e6;
  --one: #2563c9; --two: #c2621b; --bad: #c0392b; --good: #1d7f4e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1d2229; --ink: #e6e9ee; --soft: #9aa4b2;
  --rule: #333b46; --one: #6ea3f7; --two: #eb9a57; --bad: #f0806f; --good: #5cc492; } }
.label { fill: var(--soft); font-size: 12px; } .grid { stroke: var(--rule); } .line { fill: none; stroke-width: 1.75;
  stroke-linejoin: round; } .hover { fill: transparent; } .hover:hover { fill: var(--ink); fill-opacity: .08; }
"""
"""What a page with plots must have in its style."""


class Series(NamedTuple):
    """A named line: one rate for every span, and the page's colour for it."""

    name: str
    rates: Sequence[float]
    colour: str


def tag(name: str, content: str = "", **attributes: Any) -> str:
    """Return an element. Attributes are escaped, with `_` as `-`; the content is markup already."""
    listed = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{listed}>{content}</{name}>" if content else f"<{name}{listed}/>"


def _text(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def short(value: float) -> str:
    """Return a number in few characters: 0.5, 1,250, 20k, 1.5M."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size and abs(value) >= 10_000:
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def ticks(high: float, whole: bool = False) -> list[float]:
    """Return round numbers from 0 on in steps of 1, 2 or 5 times a power of ten, at most five steps; the last one
    is `high` or more.

    Args:
        high: the largest value; 0 counts as 1.
        whole: steps of whole numbers only.
    """
    high = high if high > 0 else 1.0
    step = 10.0 ** math.floor(math.log10(high / _MOST_TICKS))
    # A hair of room, or rounding makes 0.3 / 0.1 need four steps.
    step *= next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= _MOST_TICKS + 1e-9)
    step = max(step, 1.0) if whole else step
    return [step * index for index in range(1 + max(1, math.ceil(high / step - 1e-9)))]


def time_unit(seconds: float) -> str:
    """Return the unit in which to say a time: s, min or h."""
    return next((unit for unit in ("h", "min") if seconds >= _UNIT_FROM * _SECONDS[unit]), "s")


def in_unit(seconds: float, unit: str) -> float:
    """Return a time in that unit."""
    return seconds / _SECONDS[unit]


class _Frame:
    """Where values are in a plot whose axes begin at 0."""

    def __init__(self, right: float, top: float) -> None:
        self._right, self._top = max(right, 1e-9), top

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * value / self._right

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / self._top


def _label(text: str, x: float, y: float, anchor: str = "middle", kind: str = "label") -> str:
    return tag("text", escape(text), x=x, y=y, text_anchor=anchor, class_=kind)


def _left_axis(frame: _Frame, values: Sequence[float]) -> list[str]:
    lines = [
        tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=frame.y(value), y2=frame.y(value), class_="grid")
        for value in values
    ]
    return lines + [_label(short(value), _LEFT - 6, frame.y(value) + 4, "end") for value in values]


def _plot(name: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    box = f"0 0 {WIDTH} {height}"
    return tag("svg", "".join(parts), viewBox=box, role="img", aria_label=name, class_="plot")


def steps(unit_name: str, times: Sequence[tuple[float, float]], series: Sequence[Series]) -> str:
    """Return rates over time as lines of steps.

    Args:
        unit_name: of the rates, e.g. "rows/s".
        times: start and end of every span in seconds, one after the other.
        series: one or more, all with a rate for every span.
    """
    end = times[-1][1]
    unit = time_unit(end)
    across, up = ticks(in_unit(end, unit)), ticks(max(max(one.rates) for one in series))
    frame = _Frame(in_unit(end, unit), up[-1])
    places = [(frame.x(in_unit(start, unit)), frame.x(in_unit(stop, unit))) for start, stop in times]
    parts = _left_axis(frame, up)
    shown = [value for value in across if value <= in_unit(end, unit) * (1 + 1e-9)]
    parts += [_label(short(value), frame.x(value), HEIGHT - _BOTTOM + 18) for value in shown]
    parts.append(_label(f"time since the start ({unit})", (_LEFT + WIDTH) / 2, HEIGHT - 6))
    for one in series:
        path = f"M{places[0][0]:.1f} {frame.y(one.rates[0]):.1f}" + "".join(
            f"V{frame.y(rate):.1f}H{right:.1f}" for (_, right), rate in zip(places, one.rates, strict=True)
        )
        if len(series) == 1:
            area = f"{path}V{frame.y(0):.1f}H{places[0][0]:.1f}Z"
            parts.append(tag("path", d=area, style=f"fill:var(--{one.colour});fill-opacity:.15"))
        parts.append(tag("path", d=path, class_="line", style=f"stroke:var(--{one.colour})"))
    parts += _legend(series if len(series) > 1 else [], unit_name)
    for index, (left, right) in enumerate(places):
        said = ", ".join(f"{short(one.rates[index])} {one.name}" for one in series)
        start, stop = (f"{in_unit(moment, unit):,.2f}" for moment in times[index])
        title = tag("title", escape(f"{start} to {stop} {unit}: {said}"))
        height = HEIGHT - _TOP - _BOTTOM
        parts.append(tag("rect", title, x=left, y=_TOP, width=right - left, height=height, class_="hover"))
    return _plot(f"{unit_name} over time", parts)


def _legend(series: Sequence[Series], unit_name: str) -> list[str]:
    parts = [_label(unit_name, _LEFT - 46, 12, "start")]
    x = float(WIDTH - _RIGHT)
    for one in reversed(series):
        parts.append(_label(one.name, x, 12, "end"))
        x -= 6.5 * len(one.name) + 18
        parts.append(tag("rect", x=x, y=3, width=10, height=10, rx=2, style=f"fill:var(--{one.colour})"))
        x -= 14
    return parts


def columns(unit_name: str, bins: Sequence[Sequence[int]], edges: Sequence[int], colour: str) -> str:
    """Return a histogram whose bins, each a share wider than the last, stand side by side: a logarithmic axis.

    Args:
        unit_name: of the values.
        bins: first value, last value and rows of neighbouring bins; at least one.
        edges: first values of all bins that there could be.
        colour: the page's name of it.
    """
    first = edges.index(bins[0][0])
    missing = max(0, _FEWEST_BINS - len(bins))
    low = max(0, first - missing // 2)
    high = min(len(edges), max(first + len(bins), low + _FEWEST_BINS))
    up = ticks(max(rows for _, _, rows in bins), whole=True)
    frame = _Frame(high - low, up[-1])
    parts = _left_axis(frame, up)
    labelled = [place for place in range(low, high) if _is_power(edges[place])]
    every = math.ceil(len(labelled) / _MOST_BIN_LABELS)
    for place in labelled[::every]:
        parts.append(_label(short(edges[place]), frame.x(place - low), HEIGHT - _BOTTOM + 18))
        x = frame.x(place - low)
        parts.append(tag("line", x1=x, x2=x, y1=frame.y(0), y2=frame.y(0) + 4, class_="grid"))
    parts.append(_label(f"{unit_name} (logarithmic)", (_LEFT + WIDTH) / 2, HEIGHT - 6))
    parts.append(_label("rows", _LEFT - 46, 12, "start"))
    for index, (start, end, rows) in enumerate(bins, first - low):
        values = f"{start:,}" if start == end else f"{start:,} to {end:,}"
        title = tag("title", escape(f"{values} {unit_name}: {rows:,} rows"))
        left, right, top = frame.x(index), frame.x(index + 1), frame.y(rows)
        size = {"x": left + 0.5, "y": top, "width": max(0.5, right - left - 1), "height": frame.y(0) - top}
        parts.append(tag("rect", title, **size, style=f"fill:var(--{colour})"))
    return _plot(f"rows by {unit_name}", parts)


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def bars(
    counts: Sequence[tuple[str, float]], colour: str, *, title: str = "error rows by kind", unit: str = "rows"
) -> str:
    """Return one bar with its name and its value for each of `counts`; at least one.

    Args:
        counts: names and values; up to 27 characters of a name are seen.
        colour: the page's name of it.
        title: what the plot is called for those who do not see it.
        unit: of the values.
    """
    most = max(value for _, value in counts)
    names = min(max(_NAME_WIDTH, 7 * max(len(name) for name, _ in counts) + 16), WIDTH // 2)
    parts: list[str] = []
    for index, (name, value) in enumerate(counts):
        y = index * _ROW_HEIGHT
        width = max(1.0, (WIDTH - names - _COUNT_WIDTH) * value / max(1, most))
        told = tag("title", escape(f"{name}: {value:,} {unit}"))
        parts.append(_label(name, names - 8, y + 18, "end"))
        size = {"x": names, "y": y + 5, "width": width, "height": _ROW_HEIGHT - 10}
        parts.append(tag("rect", told, **size, rx=2, style=f"fill:var(--{colour})"))
        parts.append(_label(short(value), names + width + 6, y + 18, "start"))
    return _plot(title, parts, len(counts) * _ROW_HEIGHT + 4)


def document(plots: Sequence[tuple[str, str]]) -> str:
    """Return a file of its own: named plots, one below the other.

    Args:
        plots: names, and what `steps`, `columns` or `bars` returned.
    """
    parts = [tag("style", f"{STYLE}svg {{ font-family: sans-serif }} text.name {{ fill: var(--ink) }}")]
    y = 0
    for name, plot in plots:
        y += 24
        parts.append(_label(name, 4, y - 6, "start", "name"))
        height = int(plot.split('viewBox="', 1)[1].split('"', 1)[0].split()[3])
        size = f'<svg y="{y}" width="{WIDTH}" height="{height}" '
        parts.append(plot.replace("<svg ", size, 1))
        y += height + 16
    paper = tag("rect", width=WIDTH, height=y, style="fill:var(--paper)")
    box = {"viewBox": f"0 0 {WIDTH} {y}", "width": 1.5 * WIDTH, "height": 1.5 * y}
    return tag("svg", paper + "".join(parts), xmlns="http://www.w3.org/2000/svg", **box) + "\n"
