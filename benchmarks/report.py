"""The report: every figure that was measured on one page, with plots, commit, command, hardware and date.

    python benchmarks/report.py                             # out/report.html, docs/report.md and its plots
    python benchmarks/report.py --results FOLDER            # FOLDER/report.html alone, of other results
    python benchmarks/report.py --check                     # only says whether docs/report.md and its plots are current

The HTML page is one file: no script, nothing loaded from elsewhere, plots inside.
"""

import argparse
import html
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from pages import update
from report_figures import Figure, Results, Section, sections

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTHING = "Not measured."
TITLE = "Benchmarks"
ABOUT = (
    "Every figure that is in the results, as `benchmarks/report.py` writes it: edit no line by hand. Where something "
    "was not measured, it says so. Each figure is followed by its JSON file, and by commit, date, hardware and command "
    "of every run that is in it."
)
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; background: white; color: #222;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .8rem; border-top: 2px solid #222; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
nav a { display: inline-block; margin: 0 1rem .3rem 0; } a { color: #1f5f99; }
.wide { overflow-x: auto; margin: .8rem 0; }
.wide svg { display: block; width: 100%; min-width: 36rem; max-width: 760px; height: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem; border-bottom: 1px solid #ddd; }
th { font-weight: 600; vertical-align: bottom; min-width: 5rem; max-width: 11rem; }
td { white-space: nowrap; } td:not([style]) { white-space: normal; }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: white; }
@media (max-width: 60rem) { table { width: max-content; } th { max-width: 8rem; } td:not([style]) { max-width: 16rem; }
  td:first-child:not([style]) { max-width: 9.5rem; } }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; }
ul { margin: .2rem 0; padding-left: 1.2rem; color: #555; font-size: .8rem; }
"""


def runs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs whose figures are in a result: where each has its commit, command, date and hardware."""
    if "runs" in result:
        return result["runs"]
    if "parts" in result:
        found = [run for part in result["parts"].values() for run in part.get("runs", [])]
    elif "trace" in result:
        found = [about["run"] for about in result["arms"].values()]
    else:
        found = [result]
    return [{**run, "hardware": run.get("hardware", result.get("hardware"))} for run in found]


def origin(name: str, result: dict[str, Any]) -> str:
    """Where a figure is from, Markdown."""
    lines = [
        f"- commit {run['commit']}, {run['date']}, {run['hardware']}: `{run['command']}`"
        for run in runs(result)
    ]
    return "\n".join([f"From `{name}.json`:", "", *dict.fromkeys(lines)])


def _figure(figure: Figure) -> list[str]:
    images = [f"![{figure.heading}]({name})" for name in figure.plots]
    blocks = [f"### {figure.heading}", *([figure.body] if figure.body else []), *images]
    blocks += [figure.more] if figure.more else []
    return blocks + [origin(name, result) for name, result in figure.sources.items()]


def markdown(found: list[Section]) -> str:
    """The page of docs/."""
    blocks = [f"# {TITLE}", ABOUT]
    for section in found:
        blocks += [f"## {section.heading}", section.about]
        blocks += [block for figure in section.figures for block in _figure(figure)] or [NOTHING]
    return "\n\n".join(blocks) + "\n"


def page(text: str, plots: dict[str, str]) -> str:
    """The same as one HTML file.

    Args:
        text: of `markdown`.
        plots: SVG by file name, of all images in it.
    """
    made = MarkdownIt("commonmark", {"html": False}).enable("table")
    headings: list[tuple[str, str]] = []

    def rule(name: str, render: Callable[[Sequence[Token], int], str]) -> None:
        def drawn(_: RendererHTML, tokens: Sequence[Token], index: int, *__: Any) -> str:
            return render(tokens, index)

        made.add_render_rule(name, drawn)

    def heading(tokens: Sequence[Token], index: int) -> str:
        tag, words = tokens[index].tag, tokens[index + 1].content
        anchor = re.sub(r"\W+", "-", words.lower()).strip("-")
        if tag == "h2":
            headings.append((anchor, words))
        return f'<{tag} id="{anchor}">'

    rule("heading_open", heading)
    rule(
        "image",
        lambda tokens, index: f'<span class="wide">{_inline(plots[tokens[index].attrs["src"]])}</span>',
    )
    rule("table_open", lambda *_: '<div class="wide"><table>\n')
    rule("table_close", lambda *_: "</table></div>\n")
    # An image stands in a paragraph, which may hold no div.
    body = (
        made.render(text)
        .replace('<p><span class="wide">', '<div class="wide">')
        .replace("</span></p>", "</div>")
    )
    links = "\n".join(f'<a href="#{anchor}">{html.escape(words)}</a>' for anchor, words in headings)
    first, end, rest = body.partition("</h1>")
    return "\n".join([
        '<!DOCTYPE html>', '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>arctic-sglang: {TITLE}</title><style>{STYLE}</style></head><body>",
        f"{first}{end}\n<nav>{links}</nav>{rest}</body></html>", "",
    ])  # fmt: skip


def _inline(svg: str) -> str:
    """An SVG that is as wide as there is room."""
    return re.sub(r'^<svg ([^>]*?)width="\d+" height="\d+" ', r"<svg \1", svg).strip()


def main(argv: list[str] | None = None) -> int:
    """Command line: 0, or 1 if `--check` finds a file that is not current, 2 if there are no results to read."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="write nothing; 1 if something is not current")
    options.add_argument("--results", type=Path, help="folder of the measured JSON (benchmarks/results)")
    options.add_argument(
        "--docs", type=Path, help="folder of report.md (docs; with --results: none is written)"
    )
    options.add_argument(
        "--html", type=Path, help="the page (out/report.html; with --results: report.html in there)"
    )
    args = options.parse_args(argv)
    results = args.results or common.RESULTS
    docs = args.docs or (None if args.results else DOCS)
    try:
        found = sections(Results(results))
    except ValueError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    text = markdown(found)
    plots = {
        name: svg for section in found for figure in section.figures for name, svg in figure.plots.items()
    }
    wanted = {docs / "report.md": text, **{docs / name: svg for name, svg in plots.items()}} if docs else {}
    if not args.check:
        path = args.html or (results / "report.html" if args.results else ROOT / "out" / "report.html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(text, plots), encoding="utf-8")
        print(f"{path} written")
    return update(wanted, args.check)


if __name__ == "__main__":
    sys.exit(main())
