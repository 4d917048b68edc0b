"""Deployments of the same GPUs: the trifecta as a table, and latency against throughput as plots. Pure."""

import math
from typing import Any

from deployments import titles
from pages import Canvas, share, workload_title
from plot_shift import COLORS, legend

MISSING = "not measured"


def _median(result: dict[str, Any], arm: str, workload: str) -> float | None:
    return result["arms"][arm].get("cases", {}).get(workload, {}).get("median")


def arms(result: dict[str, Any]) -> dict[str, str]:
    """What the deployments of a result are called, by arm, in the order of all tables."""
    named = titles(result["gpus"], result["base_tp"])
    return {arm: named[arm] for arm in COLORS if arm in result["arms"]}


def longest(result: dict[str, Any]) -> str:
    """The workload with the longest prompt whose first token is waited for."""
    return max(
        (name for name in result["sizes"] if name.startswith("ttft")), key=lambda n: result["sizes"][n][1]
    )


def first_token(result: dict[str, Any], arm: str) -> float | None:
    """Milliseconds to the first token of the longest prompt, alone on the machine."""
    return _median(result, arm, longest(result))


def decode(result: dict[str, Any], arm: str) -> list[tuple[int, float, float]]:
    """Requests at once, milliseconds of an output token, and output tokens a second of all of them together."""
    made = []
    for name, (requests, *_) in result["sizes"].items():
        ms = _median(result, arm, name) if name.startswith("decode") else None
        if ms is not None:
            made.append((requests, ms, 1000 * requests / ms))
    return sorted(made)


def combined(result: dict[str, Any], arm: str) -> float | None:
    """Tokens a second, in and out, of the mix."""
    seconds = _median(result, arm, "mix")
    if seconds is None:
        return None
    requests, tokens_in, tokens_out = result["sizes"]["mix"]
    return requests * (tokens_in + tokens_out) / seconds


def trifecta(result: dict[str, Any]) -> str:
    """Time to first token, generation speed of a request, combined throughput; by deployment, Markdown."""
    sizes = result["sizes"]
    requests, tokens_in, tokens_out = sizes["mix"]
    heads = [
        "deployment", f"time to first token, {sizes[longest(result)][1]:,} tokens, ms",
        "generation speed of one request, tokens/s",
        f"combined throughput, {requests} x {tokens_in:,} in, {tokens_out} out, tokens/s", "prefill, tokens/s",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for arm, name in arms(result).items():
        alone = next((rate for together, _, rate in decode(result, arm) if together == 1), None)
        cells = [
            _cell(first_token(result, arm), ".1f"), _cell(alone, ",.0f"), _cell(combined(result, arm), ",.0f"),
            _cell(_median(result, arm, "prefill"), ",.0f"),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def workload_rows(result: dict[str, Any]) -> str:
    """All workloads of a result of `all_on_speed.py`, and what was asked of them, Markdown."""
    named = arms(result)
    lines = [
        f"| | unit | {' | '.join(named.values())} | asked |",
        "|---|---|" + "---:|" * len(named) + "---|",
    ]
    for name, row in result["table"].items():
        medians = row["medians"]
        cells = [_cell(medians.get(arm), ",.2f" if medians.get(arm, 0) < 1000 else ",.0f") for arm in named]
        asked = "; ".join(
            f"{named[bar['arm']]}, {bar['stated']}: {'met' if bar['met'] else 'not met'}, {bar['value']:.3f}"
            for bar in row.get("bars", ())
        )
        lines.append(
            f"| {workload_title(name, result['sizes'][name])} | {row['unit']} | {' | '.join(cells)} | {asked} |"
        )
    lines += [
        f"\n{named[arm]} ended early: {one['error']}" for arm, one in result["arms"].items() if "error" in one
    ]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


class _Axes(Canvas):
    """Latency, from 0 up, over throughput.

    Args:
        rates: tokens a second that are drawn.
        latencies: milliseconds that are drawn.
        logarithmic: the scale of throughput; else it begins at 0.
    """

    def __init__(self, rates: list[float], latencies: list[float], *, logarithmic: bool) -> None:
        super().__init__()
        self.logarithmic = logarithmic
        self.high, self.ticks_y = _rounded(1.1 * max(latencies))
        if logarithmic:
            self.ticks_x = _decades(min(rates), max(rates))
            self.least, self.most = self.ticks_x[0], self.ticks_x[-1]
        else:
            self.least = 0.0
            self.most, self.ticks_x = _rounded(1.1 * max(rates))

    def x(self, value: float) -> float:
        part = share(value, self.least, self.most) if self.logarithmic else value / self.most
        return self.LEFT + part * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, value: float) -> float:
        return self.HEIGHT - self.BOTTOM - value / self.high * (self.HEIGHT - self.TOP - self.BOTTOM)

    def axes(self, title: str, below: str) -> None:
        """Ticks, lines and titles."""
        bottom, right = self.HEIGHT - self.BOTTOM, self.WIDTH - self.RIGHT
        self.text(self.LEFT, self.TOP - 18, title, weight="bold")
        for value in self.ticks_y:
            self.stroke(self.LEFT, self.y(value), right, self.y(value), "#ddd" if value else "#888")
            self.text(self.LEFT - 8, self.y(value) + 4, f"{value:g}", anchor="end")
        for value in self.ticks_x:
            self.stroke(self.x(value), bottom, self.x(value), bottom + 5, "#888")
            self.text(self.x(value), bottom + 20, f"{value:,.0f}", anchor="middle")
        self.text((self.LEFT + right) / 2, self.HEIGHT - 12, below, anchor="middle")


def _decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis, 1, 2 and 5 times powers of ten, from one under `low` to one over `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [part * 10.0**power for power in powers for part in (1, 2, 5)]
    first = max(index for index, tick in enumerate(every) if tick < low)
    last = min(index for index, tick in enumerate(every) if tick > high)
    return every[first : last + 1]


def _rounded(least: float) -> tuple[float, list[float]]:
    """The end of an axis from 0, at least this, and its ticks: at most nine, 1, 2 or 5 times a power of ten apart."""
    step = 10.0 ** math.floor(math.log10(least))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2) if least / (step * part) <= 8)
    count = math.ceil(least / step)
    return count * step, [step * index for index in range(count + 1)]


def decode_plot(result: dict[str, Any]) -> str | None:
    """Milliseconds of an output token over output tokens a second, a line for each deployment; None without figures."""
    named = arms(result)
    found = {arm: points for arm in named if (points := decode(result, arm))}
    if not found:
        return None
    every = [point for points in found.values() for point in points]
    canvas = _Axes([rate for *_, rate in every], [ms for _, ms, _ in every], logarithmic=True)
    canvas.axes(
        "Decode: ms of a token",
        "output tokens a second of all requests together; lower and further right is better",
    )
    for arm, points in found.items():
        canvas.line([(rate, ms) for _, ms, rate in points], COLORS[arm])
        for together, ms, rate in points:
            said = f"{named[arm]}, {together} at once: {ms:.2f} ms, {rate:,.0f} tokens/s"
            canvas.point(rate, ms, COLORS[arm], said)
    for together in sorted({point[0] for point in every}):
        ms, rate = max((ms, rate) for number, ms, rate in every if number == together)
        x = canvas.x(rate)
        anchor = "end" if x > canvas.LEFT + 66 else "start"  # not over the axis' own labels
        canvas.text(x, canvas.y(ms) - 10, f"{together} at once", anchor=anchor)
    legend(canvas, {named[arm]: COLORS[arm] for arm in found})
    return canvas.svg()


def first_token_plot(result: dict[str, Any]) -> str | None:
    """Time to first token over combined throughput, a point for each deployment; None without figures."""
    named = arms(result)
    found = {arm: (combined(result, arm), first_token(result, arm)) for arm in named}
    points = {arm: (rate, ms) for arm, (rate, ms) in found.items() if rate is not None and ms is not None}
    if not points:
        return None
    canvas = _Axes(
        [rate for rate, _ in points.values()], [ms for _, ms in points.values()], logarithmic=False
    )
    tokens = result["sizes"][longest(result)][1]
    below = "combined throughput of the mix, tokens a second in and out; lower and further right is better"
    canvas.axes(f"First token of {tokens:,}, ms", below)
    for arm, (rate, ms) in points.items():
        canvas.point(rate, ms, COLORS[arm], f"{named[arm]}: {ms:.1f} ms, {rate:,.0f} tokens/s")
        canvas.text(canvas.x(rate), canvas.y(ms) - 10, named[arm], anchor="middle")
    legend(canvas, {named[arm]: COLORS[arm] for arm in points})
    return canvas.svg()


def plots(name: str, result: dict[str, Any]) -> dict[str, str]:
    """Both plots by file name, as far as there are figures.

    Args:
        name: of the result's file, without the ending.
        result: of `shift_speed.py`.
    """
    drawn = {"first-token": first_token_plot(result), "decode": decode_plot(result)}
    return {f"report-{name}-{kind}.svg": svg for kind, svg in drawn.items() if svg}
