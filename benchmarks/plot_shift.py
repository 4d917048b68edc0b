"""Writes the figures of docs/shift.md: tables of what was measured, a bar chart, and latency over time.

    python benchmarks/plot_shift.py            # after a new result
    python benchmarks/plot_shift.py --check    # only says whether the page and the plots are current

It reads `shift_speed_*.json`, `shift_trace_*.json` and `shift_soak.json` of `benchmarks/results/`; the bars are of
Llama-3.1-8B in bf16, the plots over time of the first trace.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
from deployments import titles
from pages import Canvas, fill, share, update, workload_title
from shapes import title

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = Path(__file__).name
NOTHING = "Nothing is measured yet."
COLORS = {
    "tp": "#d95f02", "tp-ngram": "#f2a97a", "dp": "#2a9d5c", "dp-ngram": "#94cfae", "sp": "#7b5ea7", "shift": "#1f77b4",
    "swiftkv": "#c2185b", "all": "#222222",
}  # fmt: skip
PHASES = {"all": "all", "quiet": "quiet phases", "burst": "bursts"}
FIGURES = {
    "ttft_median_ms": "time to first token, median, ms",
    "ttft_p95_ms": "time to first token, 95 %, ms",
    "tpot_median_ms": "time per output token, median, ms",
    "tpot_p95_ms": "time per output token, 95 %, ms",
    "completion_median_ms": "completion, median, ms",
    "completion_p95_ms": "completion, 95 %, ms",
    "tokens_per_second": "throughput, tokens/s",
}
PLOTS = {"ttft_ms": "Time to first token", "tpot_ms": "Time per output token"}


def results(folder: Path, pattern: str) -> dict[str, dict[str, Any]]:
    """Results by the name of their file; those of toy sizes are left out."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))}
    return {name: result for name, result in found.items() if result.get("shape") != "toy"}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def speed_table(name: str, result: dict[str, Any]) -> str:
    """What was asked and measured of engines side by side, and where, Markdown."""
    run, form = result["runs"][-1], result["quantization"] or "bf16"
    about = (
        f"`{name}.json`: {title(result['shape'])}, {form}, {result.get('weights', 'dummy')} weights, "
        f"{run['hardware']}, commit {run['commit']}, {run['date']}."
    )
    return f"{about}\n\n{speed_rows(result)}"


def speed_rows(result: dict[str, Any]) -> str:
    """The table alone, and which arms ended early."""
    arms = [arm for arm in COLORS if arm in result["arms"]]
    named = titles(result["gpus"], result["base_tp"])
    lines = [
        f"| | unit | {' | '.join(named[arm] for arm in arms)} | over {named['tp']} | over {named['dp']} | asked |",
        "|---|---|" + "---:|" * len(arms) + "---:|---:|---|",
    ]
    for workload, row in result["table"].items():
        sizes = result["sizes"].get(workload)
        cells = [workload_title(workload, sizes) if sizes else "weights", row["unit"]]
        cells += [_number(row["medians"].get(arm)) for arm in arms]
        faster, bar = row.get("faster_than", {}), row.get("bar")
        cells += [f"{faster[arm]:.3f}" if arm in faster else "" for arm in ("tp", "dp")]
        cells.append(
            f"{bar['stated']}: {'met' if bar['met'] else 'not met'}, {bar['ratio']:.3f}" if bar else ""
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{named[arm]} ended early: {about['error']}" for arm, about in _errors(result["arms"])]
    return "\n".join(lines)


def _errors(arms: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(arm, about) for arm, about in arms.items() if "error" in about]


def trace_named(result: dict[str, Any]) -> dict[str, str]:
    """What each arm of a trace is called."""
    options = {arm: about["options"] for arm, about in result["arms"].items()}
    sharing = options.get("shift") or options.get("sp") or {}
    base = sharing.get("tp_size", 1)
    gpus = base * sharing.get("ulysses_sequence_parallel_size", 0) or max(
        options.get("tp", {}).get("tp_size", 1), options.get("dp", {}).get("dp_size", 1)
    )
    return titles(gpus, base)


def trace_table(name: str, result: dict[str, Any]) -> str:
    """Latencies and throughput of a trace by phase and arm, and where they are from, Markdown."""
    dates = sorted({about["run"]["date"] for about in result["arms"].values()})
    commits = ", ".join(sorted({about["run"]["commit"] for about in result["arms"].values()}))
    some = next(iter(result["arms"].values()))["phases"]["all"]
    late = max(about["phases"]["all"].get("late_ms", {}).get("max") or 0 for about in result["arms"].values())
    about = (
        f"`{name}.json`: {result['hardware']}, {result.get('weights', 'dummy')} weights, commit {commits}, {dates[0]}; "
        f"{some['requests']:,} requests in {result['trace']['seconds']:g} s, rates x {result['scale']:g}, sent at "
        f"most {late:.1f} ms late."
    )
    return f"{about}\n\n{trace_rows(result)}"


def trace_rows(result: dict[str, Any]) -> str:
    """The table alone."""
    arms, named = [arm for arm in COLORS if arm in result["arms"]], trace_named(result)
    lines = [
        f"| phase | | {' | '.join(named[arm] for arm in arms)} | shift over the first |",
        "|---|---|" + "---:|" * len(arms) + "---:|",
    ]
    for phase, table in result["tables"].items():
        for figure, row in table.items():
            cells = [PHASES[phase], FIGURES[figure], *(_number(row.get(arm)) for arm in arms)]
            told = (
                f"{row['shift_over_first']:.3f}{'' if row['met'] else ', not within 3 %'}"
                if "met" in row
                else ""
            )
            lines.append(f"| {' | '.join([*cells, told])} |")
    return "\n".join(lines)


def soak_table(result: dict[str, Any] | None) -> str:
    """What came of the soak, Markdown."""
    if result is None:
        return NOTHING
    about = f"`shift_soak.json`: {result['hardware']}, commit {result['commit']}, {result['date']}."
    return f"{about}\n\n{soak_rows(result)}"


def soak_rows(result: dict[str, Any]) -> str:
    """The table alone."""
    answers, shift = result["answers"], result["shift_after"] or {}
    rows = {
        "requests, of them hung up on by the client": f"{result['requests']:,}, {result['hung_up']:,}",
        "seconds": f"{result['seconds']:,.0f}",
        "failed or hung": f"{result['failed']:,}",
        "KV slots held when idle": f"{result['held_when_idle']['num_used_tokens']:,}",
        "largest difference of a log-probability, before and after": f"{answers['largest_difference_after']:.2g}",
        "largest mean difference of a prompt amid the traffic": f"{answers['largest_mean_difference_busy']:.2g}",
        "spread of log-probabilities over tokens": f"{answers['spread']:.2g}",
    }
    if shift:
        steps = shift["steps"]
        rows["steps, tensor and sequence parallel"] = f"{steps['tp']:,}, {steps['sp']:,}"
        rows["changes of the mode"] = f"{shift['switches']:,}"
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())])


class _Bars(Canvas):
    """Bars over a logarithmic scale of speeds, 1 being tensor parallelism."""

    LOW, HIGH = 1 / 4, 4

    def y(self, value: float) -> float:
        part = share(min(max(value, self.LOW), self.HIGH), self.LOW, self.HIGH)
        return self.HEIGHT - self.BOTTOM - part * (self.HEIGHT - self.TOP - self.BOTTOM)


def bars(result: dict[str, Any]) -> str:
    """How many times as fast as tensor parallelism each arm is, as SVG."""
    canvas, named = _Bars(), titles(result["gpus"], result["base_tp"])
    right = canvas.WIDTH - canvas.RIGHT
    canvas.text(canvas.LEFT, canvas.TOP - 18, f"Speed over {named['tp']}", weight="bold")
    power = canvas.LOW
    while power <= canvas.HIGH:
        y = canvas.y(power)
        canvas.stroke(canvas.LEFT, y, right, y, "#888" if power == 1 else "#ddd")
        canvas.text(canvas.LEFT - 8, y + 4, f"{power:g}x" if power >= 1 else f"1/{1 / power:g}", anchor="end")
        power *= 2
    rows = {name: row for name, row in result["table"].items() if "tp" in row.get("faster_than", {})}
    arms = [arm for arm in ("dp", "sp", "shift") if any(arm in row["medians"] for row in rows.values())]
    step = (right - canvas.LEFT) / max(1, len(rows))
    for index, (name, row) in enumerate(rows.items()):
        left, width = canvas.LEFT + step * (index + 0.1), 0.8 * step / len(arms)
        over_tp = row["faster_than"]["tp"]
        speeds = {arm: over_tp / row["faster_than"][arm] for arm in row["faster_than"]} | {"shift": over_tp}
        for place, arm in enumerate(arms):
            if arm in speeds:
                x = left + place * width
                canvas.bar(x, 0.94 * width, speeds[arm], COLORS[arm], f"{named[arm]}, {name}")
        canvas.text(left + 0.4 * step, canvas.HEIGHT - 26, name, anchor="middle")
    legend(canvas, {named[arm]: COLORS[arm] for arm in arms})
    return canvas.svg()


def legend(canvas: Canvas, named: dict[str, str]) -> None:
    """Titles and their colours, above the right end: four to a row, two rows at most."""
    rows = -(-len(named) // 4)
    for place, (name, color) in enumerate(reversed(named.items())):
        x = canvas.WIDTH - canvas.RIGHT - 116 * (place % 4 + 1)
        y = canvas.TOP - 28 + (8 if place < 4 else -8) * (rows - 1)
        canvas.box(x, y, 12, 12, color)
        canvas.text(x + 18, y + 10, name)


class _Times(Canvas):
    """Milliseconds, on a logarithmic scale, over seconds.

    Args:
        seconds: of the trace.
        values: all that is drawn.
    """

    def __init__(self, seconds: float, values: list[float]) -> None:
        super().__init__()
        self.seconds = seconds
        self.low = self.high = 1.0
        while self.low > min(values):
            self.low /= 2
        while 2 * self.low < min(values):
            self.low *= 2
        while self.high <= max(values) or self.high <= self.low:
            self.high *= 2

    def x(self, value: float) -> float:
        return self.LEFT + value / self.seconds * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, value: float) -> float:
        part = share(value, self.low, self.high)
        return self.HEIGHT - self.BOTTOM - part * (self.HEIGHT - self.TOP - self.BOTTOM)


def over_time(result: dict[str, Any], figure: str) -> str | None:
    """Medians of 5 seconds over time for each arm, bursts shaded, as SVG; None if there is nothing."""
    lines = {arm: about["series"] for arm, about in result["arms"].items()}
    values = [value for line in lines.values() for value in line[figure] if value is not None]
    if not values:
        return None
    trace, named = result["trace"], trace_named(result)
    canvas = _Times(trace["seconds"], values)
    top, bottom = canvas.TOP, canvas.HEIGHT - canvas.BOTTOM
    end = trace["period"]
    while end - trace["burst"] < trace["seconds"]:
        begin, until = end - trace["burst"], min(end, trace["seconds"])
        left, right = canvas.x(begin), canvas.x(until)
        canvas.box(left, top, right - left, bottom - top, "#f3f3f3")
        canvas.text((left + right) / 2, bottom + 18, f"{begin:g}-{until:g} s", anchor="middle")
        end += trace["period"]
    canvas.text(canvas.LEFT, top - 18, f"{PLOTS[figure]}, ms", weight="bold")
    power = canvas.low
    while power <= canvas.high:
        canvas.stroke(canvas.LEFT, canvas.y(power), canvas.WIDTH - canvas.RIGHT, canvas.y(power), "#ddd")
        canvas.text(canvas.LEFT - 8, canvas.y(power) + 4, f"{power:g}", anchor="end")
        power *= 2
    for arm in [arm for arm in COLORS if arm in lines]:
        for part in _unbroken(lines[arm]["at"], lines[arm][figure]):
            canvas.line(part, COLORS[arm])
            for at, value in part:
                canvas.point(at, value, COLORS[arm], f"{named[arm]}, {at:g} s: {value:.1f} ms")
    canvas.text((canvas.LEFT + canvas.WIDTH) / 2, canvas.HEIGHT - 12, "bursts are shaded", anchor="middle")
    legend(canvas, {named[arm]: COLORS[arm] for arm in COLORS if arm in lines})
    return canvas.svg()


def _unbroken(at: list[float], values: list[float | None]) -> list[list[tuple[float, float]]]:
    """Runs of points without a gap."""
    parts: list[list[tuple[float, float]]] = [[]]
    for time, value in zip(at, values, strict=True):
        if value is None:
            parts.append([])
        else:
            parts[-1].append((time, value))
    return [part for part in parts if part]


def pages(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Blocks of the page by name, and plots by file name.

    Args:
        folder: of the measured JSON.
    """
    speeds, traces = results(folder, "shift_speed_*.json"), results(folder, "shift_trace_*.json")
    soak = results(folder, "shift_soak.json").get("shift_soak")
    plots = {}
    if "shift_speed_llama-3.1-8b" in speeds:
        plots["shift-speed.svg"] = bars(speeds["shift_speed_llama-3.1-8b"])
    for figure in PLOTS if traces else ():
        drawn = over_time(next(iter(traces.values())), figure)
        if drawn is not None:
            plots[f"shift-{figure.removesuffix('_ms')}.svg"] = drawn
    seen = {name: f"![{name.removesuffix('.svg')}]({name})" for name in plots}
    speed = [speed_table(*found) for found in speeds.items()] or [NOTHING]
    traffic = [trace_table(*found) for found in traces.items()] or [NOTHING]
    speed += [text for name, text in seen.items() if name == "shift-speed.svg"]
    traffic += [text for name, text in seen.items() if name != "shift-speed.svg"]
    return {"speed": "\n\n".join(speed), "traffic": "\n\n".join(traffic), "soak": soak_table(soak)}, plots


def main() -> int:
    """Command line: 0, or 1 if `--check` finds a file that is not current."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing; 1 if something is not current")
    options.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the measured JSON")
    options.add_argument("--docs", type=Path, default=DOCS, help="folder of shift.md")
    args = options.parse_args()
    blocks, plots = pages(args.results)
    page = args.docs / "shift.md"
    wanted = {page: fill(page.read_text(encoding="utf-8"), blocks, SCRIPT)}
    return update(wanted | {args.docs / name: text for name, text in plots.items()}, args.check)


if __name__ == "__main__":
    sys.exit(main())
