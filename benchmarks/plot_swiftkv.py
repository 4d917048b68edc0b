"""Writes the figures of docs/swiftkv.md: the table and the plot of prefill work saved, and what was measured.

    python benchmarks/plot_swiftkv.py            # after a change of swiftkv/cost.py or a new result
    python benchmarks/plot_swiftkv.py --check    # only says whether the page and the plot are current

The count of operations is that of `swiftkv.cost`; measured points come from `benchmarks/results/swiftkv_*.json`.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import common
from pages import Canvas, fill, share, update, workload_title
from shapes import MODELS, Model, title

from swiftkv.cost import prefill_saved

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = Path(__file__).name
LENGTHS = [2**power for power in range(7, 18)]  # 128 .. 131072
# An H200's data sheet: 989 dense bf16 TFLOP/s and 4.8 TB/s. A product with fewer rows than the quotient waits
# for its weights. In fp8 both the operations and the weights a second double.
H200_ROWS = round(989 / 4.8)
COLORS = {"llama-3.1-8b": "#1f77b4", "llama-3.1-70b": "#d95f02", "qwen2.5-7b": "#2a9d5c"}
OTHER = "#7b5ea7"  # a checkpoint of another shape, in the report


def work_table() -> str:
    """Percent of operations and of time saved, by prompt length and model, as Markdown."""
    names = [f"{m.title}, cut {m.cut} of {m.shape.layers}" for m in map(MODELS.__getitem__, COLORS)]
    lines = ["| tokens | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
    for tokens in LENGTHS:
        cells = [
            " / ".join(f"{100 * _saved(MODELS[name], tokens, floor):.1f}" for floor in (0, H200_ROWS))
            for name in COLORS
        ]
        lines.append(f"| {tokens:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The measured comparisons, by the name of their file; those of toy sizes are left out."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("swiftkv_*.json"))}
    return {name: result for name, result in found.items() if result.get("shape") in COLORS}


def measured_table(found: dict[str, dict[str, Any]]) -> str:
    """One Markdown table for each result."""
    if not found:
        return "Nothing is measured yet."
    blocks = []
    for name, result in found.items():
        about = f"{title(result['shape'])}, cut {result['cut']}, {result['hardware']}"
        weights = result.get("weights", "dummy")
        about = f"`{name}.json`: {about}, {weights} weights, commit {result['commit']}."
        blocks.append(f"{about}\n\n{measured_rows(result)}")
    return "\n\n".join(blocks)


def measured_rows(result: dict[str, Any]) -> str:
    """The table of one result."""
    lines = [
        "| workload | unit | stock | SwiftKV | ratio | limit by operations |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for workload, row in result["table"].items():
        if "ratio" in row:
            limit = "" if row["limit"] is None else f"{row['limit']:.2f}"
            named = workload_title(workload, result["sizes"][workload])
            lines.append(
                f"| {named} | {row['unit']} | {row['stock']:,.2f} | {row['swiftkv']:,.2f} "
                f"| {row['ratio']:.3f} | {limit} |"
            )
    return "\n".join(lines)


def points(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, int, float]]:
    """Shape, a label, prompt length and share of time saved of each measured prefill."""
    made = []
    for name, result in found.items():
        for workload, row in result["table"].items():
            if "ratio" in row and workload.startswith(("ttft", "prefill")):
                tokens = result["sizes"][workload][1]
                made.append((result["shape"], f"{name}: {workload}", tokens, 1 - 1 / row["ratio"]))
    return made


def plot(measured: list[tuple[str, str, int, float]]) -> str:
    """The plot as SVG: shares saved over prompt length."""
    lowest = min([0.0, *(saved for *_, saved in measured)])
    canvas = _Canvas(bottom=math.floor(lowest * 10) / 10)
    canvas.axes()
    for name in COLORS:
        for floor in (0, H200_ROWS):
            line = [(tokens, _saved(MODELS[name], tokens, floor)) for tokens in _steps()]
            canvas.line(line, COLORS[name], dashed=floor > 0)
    for name, label, tokens, saved in measured:
        canvas.point(tokens, saved, COLORS.get(name, OTHER), f"{label}, {saved:.1%}")
    canvas.legend(bool(measured))
    return canvas.svg()


def main() -> int:
    """Command line: 0, or 1 if `--check` finds a file that is not current."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing; 1 if something is not current")
    options.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the measured JSON")
    options.add_argument("--docs", type=Path, default=DOCS, help="folder of swiftkv.md and swiftkv-work.svg")
    args = options.parse_args()
    found = results(args.results)
    page = (args.docs / "swiftkv.md").read_text(encoding="utf-8")
    wanted = {
        args.docs / "swiftkv.md": fill(
            page, {"work": work_table(), "measured": measured_table(found)}, SCRIPT
        ),
        args.docs / "swiftkv-work.svg": plot(points(found)),
    }
    return update(wanted, args.check)


class _Canvas(Canvas):
    """Draws into the data's coordinates: tokens, on a logarithmic scale, and shares."""

    HIGHEST = 0.6

    def __init__(self, bottom: float) -> None:
        super().__init__()
        self.bottom = bottom

    def x(self, tokens: float) -> float:
        part = share(tokens, LENGTHS[0], LENGTHS[-1])
        return self.LEFT + part * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, saved: float) -> float:
        part = (saved - self.bottom) / (self.HIGHEST - self.bottom)
        return self.HEIGHT - self.BOTTOM - part * (self.HEIGHT - self.TOP - self.BOTTOM)

    def axes(self) -> None:
        left, right = self.x(LENGTHS[0]), self.x(LENGTHS[-1])
        self.text(left, self.TOP - 18, "Share of the prefill that SwiftKV saves", weight="bold")
        for tenth in range(round(self.bottom * 10), round(self.HIGHEST * 10) + 1):
            y = self.y(tenth / 10)
            self.stroke(left, y, right, y, "#888" if tenth == 0 else "#ddd")
            self.text(left - 8, y + 4, f"{tenth * 10} %", anchor="end")
        for tokens in LENGTHS:
            x = self.x(tokens)
            self.stroke(x, self.y(self.bottom), x, self.y(self.bottom) + 5, "#888")
            label = str(tokens) if tokens < 1024 else f"{tokens // 1024}k"
            self.text(x, self.y(self.bottom) + 20, label, anchor="middle")
        self.text((left + right) / 2, self.HEIGHT - 12, "tokens of the prompt", anchor="middle")

    def legend(self, measured: bool) -> None:
        models = {name: MODELS[name] for name in COLORS}
        rows = [(f"{m.title}, cut {m.cut} of {m.shape.layers}", COLORS[n], "") for n, m in models.items()]
        rows += [("operations", "#555", ""), ("time, at best, on an H200", "#555", ' stroke-dasharray="6 4"')]
        x, y = self.x(5000), self.y(0.19)
        height = 18 * (len(rows) + measured)
        self.parts.append(
            f'<rect x="{x - 10:.1f}" y="{y - 12:.1f}" width="220" height="{height + 6}" fill="white"/>'
        )
        for index, (named, color, dash) in enumerate(rows):
            at = y + 18 * index
            self.stroke(x, at, x + 28, at, color, f' stroke-width="2"{dash}')
            self.text(x + 36, at + 4, named)
        if measured:
            at = y + 18 * len(rows)
            self.parts.append(f'<circle cx="{x + 14:.1f}" cy="{at:.1f}" r="4.5" fill="#555"/>')
            self.text(x + 36, at + 4, "time, measured")


def _steps() -> list[int]:
    """Lengths between the table's, eight to a doubling, so that the curves are smooth."""
    first, last = math.log2(LENGTHS[0]), math.log2(LENGTHS[-1])
    return [round(2 ** (first + step / 8)) for step in range(round((last - first) * 8) + 1)]


def _saved(model: Model, tokens: int, floor: int) -> float:
    return prefill_saved(model.shape, tokens, model.layout(), floor)


if __name__ == "__main__":
    sys.exit(main())
