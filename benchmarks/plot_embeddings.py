"""Writes the figures of docs/embeddings.md: the tables of what was measured, and the plot over row length.

    python benchmarks/plot_embeddings.py            # after a new result
    python benchmarks/plot_embeddings.py --check    # only says whether the page and the plot are current

It reads `embed_speed.json` and `embed_cpu.json` of `benchmarks/results/`.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import common
from embed_cases import SWEEP
from pages import Canvas, fill, share, update

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = Path(__file__).name
NOTHING = "Nothing is measured yet."
COLORS = {"ours": "#1f77b4", "stock": "#d95f02"}
TITLES = {"ours": "ours: batch_sdk.embed, strings in Arrow", "stock": "stock SGLang: Engine.encode, strings"}
LOWEST, HIGHEST = 1e4, 1e7
CASES = {
    "sdk": "`batch_sdk.embed`, strings", "ids": "`batch_sdk.embed`, token ids",
    "engine": "`Engine.encode`, strings", "engine ids": "`Engine`, token ids", "tokenize": "the tokenizer alone",
    "core": "the forward step alone",
}  # fmt: skip

# What else an arm's name says.
ARMS = {"replicas-": ", {} to a GPU", "steps-": ", steps of {}", "fp8": ", fp8"}


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A result, if there is one."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def sweep(result: dict[str, Any] | None, arm: str) -> list[tuple[int, float]]:
    """Tokens of a row and tokens/s, as far as they were measured."""
    found = (result or {}).get("arms", {}).get(arm, {}).get("cases", {})
    rows = [found.get(f"sweep {tokens}") for tokens in SWEEP]
    return [(row["tokens_per_row"], row["median"]) for row in rows if row and "median" in row]


def speed_table(result: dict[str, Any] | None) -> str:
    """Everything that is no sweep, as Markdown."""
    return NOTHING if result is None else f"{_sources(result)}\n\n{speed_rows(result)}"


def speed_rows(result: dict[str, Any]) -> str:
    """The table alone, and the limits that the peak is taken of."""
    lines = ["| | stock SGLang | ours | ratio | of the peak | asked for |", "|---|---:|---:|---:|---:|---|"]
    for name, row in result["table"].items():
        if name.startswith("sweep"):
            continue
        stock, ours = (_number(row, arm) for arm in ("stock", "ours"))
        ratio = f"{row['ratio']:.1f}" if "ratio" in row else ""
        part = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        lines.append(f"| {_title(name)}, {row['unit']} | {stock} | {ours} | {ratio} | {part} | {_bar(row)} |")
    return "\n".join([*lines, "", *_limits(result)]).rstrip()


def http_table(result: dict[str, Any] | None) -> str:
    """Rows a second and latencies of the HTTP cases, as Markdown."""
    arms = (result or {}).get("arms", {})
    lines = ["| batch, encoding | server | rows/s | p50 ms | p95 ms |", "|---|---|---:|---:|---:|"]
    for arm, title in (("stock-http", "stock"), ("ours-http", "ours")):
        for name, row in arms.get(arm, {}).get("cases", {}).items():
            if name.startswith("http") and "error" not in row:
                ms = row["latency_ms"]
                rows = f"{row['rows_per_second']:,.0f}"
                lines.append(f"| {name[5:]} | {title} | {rows} | {ms['p50']:,.1f} | {ms['p95']:,.1f} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def cpu_text(result: dict[str, Any] | None) -> str:
    """The comparison on a CPU, in a sentence."""
    if result is None:
        return NOTHING
    rates = result["rows_per_second"]
    return (
        f"`embed_cpu.json`: {result['processors']} cores of {result['processor']}, commit {result['commit']}: "
        f"{result['rows']:,} rows, {result['tokens']:,} tokens, float32. `batch_sdk.embed` {rates['sdk']:,.0f} rows/s, "
        f"`encode` {rates['sentence_transformers']:,.0f} rows/s: a ratio of {result['ratio']:.2f}, the least cosine "
        f"between the two {result['least_cosine']:.7f}."
    )


def plot(result: dict[str, Any] | None) -> str:
    """The plot as SVG."""
    canvas = _Canvas()
    canvas.axes()
    ceiling = (result or {}).get("arms", {}).get("peak", {}).get("cases", {}).get("gemms")
    if ceiling:
        canvas.line([(SWEEP[0], ceiling["median"]), (SWEEP[-1], ceiling["median"])], "#888", dashed=True)
    legend = [("the model's matrix products alone", "#888")] if ceiling else []
    for arm, color in COLORS.items():
        points = sweep(result, arm)
        if points:
            canvas.line(points, color)
            legend.append((TITLES[arm], color))
        for tokens, rate in points:
            canvas.point(tokens, rate, color, f"{arm}, {tokens} tokens a row: {rate:,.0f} tokens/s")
    canvas.legend(legend)
    return canvas.svg()


def main() -> int:
    """Command line: 0, or 1 if `--check` finds a file that is not current."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing; 1 if something is not current")
    options.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the measured JSON")
    options.add_argument("--docs", type=Path, default=DOCS, help="folder of embeddings.md and embeddings.svg")
    args = options.parse_args()
    speed, cpu = (read(args.results, name) for name in ("embed_speed", "embed_cpu"))
    page = args.docs / "embeddings.md"
    blocks = {"speed": speed_table(speed), "http": http_table(speed), "cpu": cpu_text(cpu)}
    text = fill(page.read_text(encoding="utf-8"), blocks, SCRIPT)
    return update({page: text, args.docs / "embeddings.svg": plot(speed)}, args.check)


class _Canvas(Canvas):
    """Tokens of a row and tokens a second, both on logarithmic scales."""

    def x(self, tokens: float) -> float:
        return self.LEFT + share(tokens, SWEEP[0], SWEEP[-1]) * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, rate: float) -> float:
        part = share(max(rate, LOWEST), LOWEST, HIGHEST)
        return self.HEIGHT - self.BOTTOM - part * (self.HEIGHT - self.TOP - self.BOTTOM)

    def axes(self) -> None:
        left, right = self.x(SWEEP[0]), self.x(SWEEP[-1])
        self.text(left, self.TOP - 18, "Tokens embedded a second", weight="bold")
        for power in range(round(math.log10(LOWEST)), round(math.log10(HIGHEST)) + 1):
            for factor in (1, 2, 5) if 10**power < HIGHEST else (1,):
                rate = factor * 10**power
                self.stroke(left, self.y(rate), right, self.y(rate), "#bbb" if factor == 1 else "#eee")
                label = f"{rate / 1e6:g} M" if rate >= 1e6 else f"{rate // 1000:,} k"
                self.text(left - 8, self.y(rate) + 4, label, anchor="end")
        for tokens in SWEEP:
            bottom = self.y(LOWEST)
            self.stroke(self.x(tokens), bottom, self.x(tokens), bottom + 5, "#888")
            # 50 stands too close to 64 for a label of its own line
            self.text(self.x(tokens), bottom + (32 if tokens == 50 else 20), str(tokens), anchor="middle")
        self.text((left + right) / 2, self.HEIGHT - 8, "tokens of a row", anchor="middle")

    def legend(self, rows: list[tuple[str, str]]) -> None:
        x, y = self.x(70), self.y(LOWEST) - 18 * len(rows)
        for index, (title, color) in enumerate(rows):
            at = y + 18 * index
            self.stroke(x, at, x + 28, at, color, ' stroke-width="2"')
            self.text(x + 36, at + 4, title)


def _title(name: str) -> str:
    words = name.split()
    if words[0] == "http":
        return f"HTTP, batches of {words[1]}, {words[2]}"
    if words[0] == "fair":
        return "one row beside 100,000, " + ("HTTP" if words[-1] == "http" else "in process")
    arm = words.pop() if words[-1].startswith(tuple(ARMS)) else ""
    about = next(
        (text.format(arm.split("-")[-1]) for start, text in ARMS.items() if arm.startswith(start)), ""
    )
    *kind, tokens = words
    return f"{CASES[' '.join(kind)]}, {tokens} tokens{about}"


def _number(row: dict[str, Any], arm: str) -> str:
    if row.get(arm) is None:
        return ""
    return f"{row[arm] / 1e6:.2f} M" if row["unit"] == "tokens/s" else f"{row[arm]:.1f}"


def _bar(row: dict[str, Any]) -> str:
    bar = row.get("bar")
    if bar is None:
        return ""
    wanted = {
        "at_least": lambda value: f"{value / 1e6:.1f} M", "ratio_at_least": lambda value: f"{value:g} times",
        "below": lambda value: f"under {value:g}",
    }  # fmt: skip
    words = next(say(bar[key]) for key, say in wanted.items() if key in bar)
    return f"{words}: {'yes' if bar['met'] else 'no'}"


def _sources(result: dict[str, Any]) -> str:
    used = {case["run"] for arm in result["arms"].values() for case in arm["cases"].values() if "run" in case}
    runs = dict.fromkeys(
        (result["runs"][index]["hardware"], result["runs"][index]["commit"]) for index in sorted(used)
    )
    listed = "; ".join(f"{hardware}, commit {commit}" for hardware, commit in runs)
    weights = result.get("weights", "dummy")
    return f"`embed_speed.json`: {listed}; {result['dtype']}, {weights} weights, medians."


def _limits(result: dict[str, Any]) -> list[str]:
    cases = result["arms"].get("peak", {}).get("cases", {})
    if not {"peak", "gemms"} <= cases.keys():
        return []
    return [
        f"The peak is that of one square product, {cases['peak']['median']:,.0f} TFLOP/s. The model's own products "
        f"alone, one after another, make {cases['gemms']['median'] / 1e6:.2f} M tokens/s."
    ]


if __name__ == "__main__":
    sys.exit(main())
