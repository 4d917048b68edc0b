"""Writes the figures of docs/speculation.md: the tables of what was measured, and the plot.

    python benchmarks/plot_speculation.py            # after a new result
    python benchmarks/plot_speculation.py --check    # only says whether the page and the plot are current

It reads `speculation_speed.json`, `speculation_acceptance.json`, `suffix_index.json` and `speculator_draft.json` of
`benchmarks/results/`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import common
from pages import Canvas, fill, share, update

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = Path(__file__).name
NOTHING = "Nothing is measured yet."
COLORS = {"suffix": "#1f77b4", "ngram": "#d95f02"}
TITLES = {
    "none": "no speculation", "ngram": "SGLang's NGRAM", "suffix": "suffix index", "lstm": "draft head",
    "hybrid": "both",
}  # fmt: skip
WORDS = {"fresh": "nothing to draft", "repeated": "text that repeats"}


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """A result, if there is one."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def told(result: dict[str, Any], name: str) -> str:
    """Where a table's figures come from."""
    return f"`{name}.json`: {result['hardware']}, commit {result['commit']}, {result['date']}."


def speed_table(result: dict[str, Any]) -> str:
    """Time of a token, Markdown."""
    lines = [
        "| requests at once | none, ms/token | suffix index | over none | SGLang's NGRAM | over none | asked |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in result["table"].items():
        kind, requests = name.split()
        ms, over = row["ms_per_token"], row["over_none"]
        cells = [f"{ms['none']:.3f}"]
        for arm in ("suffix", "ngram"):
            cells += [f"{ms[arm]:.3f}", f"{over[arm]:.3f}"] if arm in ms else ["", ""]
        bar = f"at most {row['bar']:.3f}" if row.get("bar") else ""
        lines.append(f"| {WORDS[kind]}, {requests} | {' | '.join(cells)} | {bar} |")
    return "\n".join(lines)


def acceptance_table(result: dict[str, Any]) -> str:
    """Tokens a step and a second by arm and requests at once, Markdown."""
    together = list(next(iter(result["arms"].values()))["rows"])
    heads = "".join(f" tokens a step, {n} at once | tokens/s |" for n in together)
    lines = [
        f"| drafts |{heads}",
        "|---|" + "---:|---:|" * len(together),
    ]
    for arm, found in result["arms"].items():
        cells = []
        for n in together:
            row = found["rows"].get(n)
            if row is None:
                cells += ["", ""]
            else:
                cells += [
                    f"{row['tokens_per_step']['median']:.2f}",
                    f"{row['tokens_per_second']['median']:,.0f}",
                ]
        lines.append(f"| {TITLES[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draft_table(result: dict[str, Any]) -> str:
    """Milliseconds of a draft by batch size, Markdown."""
    ways = [name for name, row in result["drafts"][0].items() if isinstance(row, dict)]
    lines = [
        f"| batch | {' | '.join(f'{way}, ms' for way in ways)} |",
        "|---:|" + "---:|" * len(ways),
    ]
    lines += [
        "| " + " | ".join([str(row["batch"]), *(format(row[way]["ms"], ".3f") for way in ways)]) + " |"
        for row in result["drafts"]
    ]
    return "\n".join(lines)


INDEX = {
    "accepted_per_step": "draft tokens accepted a step",
    "update_and_speculate_us_per_token": "update and draft, us a token",
    "all_us_per_token": "all of it, prompts too, us a token",
    "resident_bytes_per_token": "memory, bytes a token",
    "longest_call_ms": "longest call while a prompt of 32,000 tokens arrives, ms",
}


def index_table(result: dict[str, Any]) -> str:
    """The suffix index beside its peer, Markdown."""
    lines = [
        "| trace | | here | the peer | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for trace, found in result["traces"].items():
        for job in ("play", "memory", "delay"):
            arms = found.get(job, {})
            for name, words in INDEX.items():
                if name not in arms.get("ours", {}) or (job, name) == ("play", "longest_call_ms"):
                    continue
                ours, peer = (_median(arms[arm][name]) if arm in arms else None for arm in ("ours", "peer"))
                cells = [f"{ours:,.3g}" if job != "play" else f"{ours:,.3f}", "", ""]
                if peer is not None:
                    cells[1:] = [f"{peer:,.3g}" if job != "play" else f"{peer:,.3f}", f"{ours / peer:.3f}"]
                lines.append(f"| {trace} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(value: Any) -> float:
    return value["median"] if isinstance(value, dict) else value


# Of the page: the result and the table made of it.
BLOCKS = {
    "speed": ("speculation_speed", speed_table), "acceptance": ("speculation_acceptance", acceptance_table),
    "index": ("suffix_index", index_table), "draft": ("speculator_draft", draft_table),
}  # fmt: skip


class _Canvas(Canvas):
    """Bars over a logarithmic scale of speeds, 1 being no speculation."""

    LOW, HIGH = 1 / 16, 32

    def y(self, value: float) -> float:
        return (
            self.HEIGHT
            - self.BOTTOM
            - share(value, self.LOW, self.HIGH) * (self.HEIGHT - self.TOP - self.BOTTOM)
        )


def plot(result: dict[str, Any]) -> str:
    """Output tokens a second over those of no speculation, as SVG."""
    canvas = _Canvas()
    canvas.text(canvas.LEFT, canvas.TOP - 18, "Decode speed over no speculation", weight="bold")
    right = canvas.WIDTH - canvas.RIGHT
    power = canvas.LOW
    while power <= canvas.HIGH:
        y = canvas.y(power)
        canvas.stroke(canvas.LEFT, y, right, y, "#888" if power == 1 else "#ddd")
        canvas.text(canvas.LEFT - 8, y + 4, f"{power:g}x" if power >= 1 else f"1/{1 / power:g}", anchor="end")
        power *= 2
    rows = [(name, row) for name, row in result["table"].items() if row["over_none"]]
    step = (right - canvas.LEFT) / max(1, len(rows))
    for index, (name, row) in enumerate(rows):
        kind, requests = name.split()
        left = canvas.LEFT + step * (index + 0.2)
        for place, (arm, color) in enumerate(COLORS.items()):
            if arm in row["over_none"]:
                canvas.bar(
                    left + place * step * 0.3,
                    step * 0.28,
                    1 / row["over_none"][arm],
                    color,
                    f"{arm}, {name}",
                )
        canvas.text(left + step * 0.3, canvas.HEIGHT - 34, WORDS[kind], anchor="middle")
        canvas.text(left + step * 0.3, canvas.HEIGHT - 18, f"{requests} at once", anchor="middle")
    for place, (arm, color) in enumerate(COLORS.items()):
        x = right - 300 + 150 * place
        canvas.parts.append(f'<rect x="{x}" y="{canvas.TOP - 28}" width="12" height="12" fill="{color}"/>')
        canvas.text(x + 18, canvas.TOP - 18, TITLES[arm])
    return canvas.svg()


def main() -> int:
    """Command line: 0, or 1 if `--check` finds a file that is not current."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing; 1 if something is not current")
    options.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the measured JSON")
    options.add_argument("--docs", type=Path, default=DOCS, help="folder of speculation.md")
    args = options.parse_args()
    found = {name: read(args.results, name) for name, _ in BLOCKS.values()}
    blocks = {
        block: f"{told(result, name)}\n\n{table(result)}" if (result := found[name]) else NOTHING
        for block, (name, table) in BLOCKS.items()
    }
    page = (args.docs / "speculation.md").read_text(encoding="utf-8")
    wanted = {args.docs / "speculation.md": fill(page, blocks, SCRIPT)}
    if found["speculation_speed"] is not None:
        wanted[args.docs / "speculation.svg"] = plot(found["speculation_speed"])
    return update(wanted, args.check)


if __name__ == "__main__":
    sys.exit(main())
