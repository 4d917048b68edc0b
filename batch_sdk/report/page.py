"""A report as one HTML page: no script, nothing from the network, light or dark as the reader's system is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from batch_sdk.report import svg
from batch_sdk.report.recorder import EDGES

MARK = "arctic-batch report"
"""Near the beginning of every report, JSON or HTML."""

_STYLE = (
    svg.STYLE
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 0 0 .5rem; } p { margin: .25rem 0; }
.soft { color: var(--soft); } .state { font-weight: 600; }
.complete { color: var(--good); } .stopped { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1rem 0 0; }
.tiles div, .card { background: var(--card); border-radius: 8px; padding: .6rem .8rem; min-width: 0; }
.tiles dt { color: var(--soft); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .8rem; }
table { margin-top: .8rem; }
.plot { display: block; width: 100%; height: auto; overflow: visible; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-top: 1px solid var(--rule); }
th { font-weight: 500; color: var(--soft); white-space: nowrap; width: 1%; }
@media (max-width: 36rem) { th, td { display: block; width: auto; }
  th br { display: none; } td { border: 0; padding-top: 0; } }
pre { margin: 0; font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
"""
)

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="generator" content="{{ mark }}">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p><span class="state {{ 'complete' if state == 'complete' else 'stopped' }}">{{ state }}</span>
<span class="soft">· {{ started }} · to {{ output }}</span></p>
{% if problem %}<div class="card"><pre id="problem">{{ problem }}</pre></div>{% endif %}
<dl class="tiles">{% for name, value in tiles %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
{% if earlier %}<p class="soft">{{ earlier }} of the rows were done by earlier runs; rates and plots are of this one.
</p>{% endif %}
{% if plots %}<h2>Plots</h2><div class="plots">
{% for name, plot in plots %}<section class="card"><h3>{{ name }}</h3>{{ plot }}</section>
{% endfor %}</div>{% endif %}
<h2>Errors</h2>
{% if not kinds %}<p class="soft">No row has an error.</p>{% else %}
<div class="plots"><section class="card"><h3>Error rows by kind</h3>{{ bars }}</section></div>
<table id="examples">{% for kind, found in kinds %}{% for one in found %}
<tr><th>{{ kind }}<br> row {{ '{:,}'.format(one.row) }}</th><td><pre>{{ one.message }}</pre></td></tr>
{% endfor %}{% endfor %}</table>
<p class="soft">The first few of every kind in this run; rows are counted from 0.</p>{% endif %}
<h2>Job</h2><table id="job">{% for name, value in job %}
<tr><th>{{ name }}</th><td><pre>{{ value }}</pre></td></tr>{% endfor %}</table>
<h2>Versions</h2><table>{% for name, value in versions %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""


def render(report: Mapping[str, Any]) -> str:
    """Return the page for a report as `Report` makes it."""
    # Escapes all text: error messages come from anywhere.
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    summary, errors = report["summary"], report["errors"]
    counts = sorted(((kind, found["rows"]) for kind, found in errors.items()), key=lambda item: -item[1])
    return page.render(
        mark=MARK,
        style=Markup(_STYLE),
        title=f"{report['command']} · {report['job']['model']}",
        state=report["state"],
        started=report["started"].replace("T", " ").replace("+00:00", " UTC"),
        output=report["output"] or "memory",
        problem=report["problem"],
        tiles=_tiles(report),
        earlier=f"{summary['earlier_rows']:,}" if summary["earlier_rows"] else "",
        plots=[(name, Markup(plot)) for name, plot in _plots(report)],
        kinds=[(kind, errors[kind]["examples"]) for kind, _ in counts],
        bars=Markup(svg.bars(counts, "bad")) if counts else "",
        job=_job(report),
        versions=report["versions"].items(),
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    summary, total = report["summary"], report["total_rows"]
    partial = report["state"] != "complete" and total is not None
    rows = f"{summary['rows']:,}" + (f" of {total:,}" if partial else "")
    tiles = [
        ("rows", rows),
        ("rows/s", _rate(summary["rows_per_second"])),
        ("error rows", f"{sum(summary['errors'].values()):,}"),
        ("tokens in", f"{summary['prompt_tokens']:,}"),
    ]
    if report["command"] == "generate":
        tiles.append(("tokens out", f"{summary['completion_tokens']:,}"))
    tiles.append(("tokens/s", _rate(summary["tokens_per_second"])))
    if summary["cache_hit_rate"] is not None:
        tiles.append(("tokens in, cached", f"{summary['cache_hit_rate']:.1%}"))
    tiles += [("time", _time(summary["seconds"])), ("engine start", _time(summary["engine_start_seconds"]))]
    return [*tiles, ("engine restarts", f"{summary['engine_restarts']:,}")]


def _plots(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    spans, plots = report["throughput"], []
    if spans:
        times = [(span["start"], span["end"]) for span in spans]

        def series(name: str, field: str, colour: str) -> svg.Series:
            lengths = [max(1e-9, end - start) for start, end in times]
            rates = [span[field] / length for span, length in zip(spans, lengths, strict=True)]
            return svg.Series(name, rates, colour)

        plots.append(("Rows over time", svg.steps("rows/s", times, [series("rows/s", "rows", "one")])))
        tokens = [series("tokens in", "prompt_tokens", "one")]
        if report["command"] == "generate":
            tokens.append(series("tokens out", "completion_tokens", "two"))
        plots.append(("Tokens over time", svg.steps("tokens/s", times, tokens)))
    names = {"prompt_tokens": ("Tokens in", "one"), "completion_tokens": ("Tokens out", "two")}
    for field, (name, colour) in names.items():
        found = report["tokens"][field]
        if found["rows"]:
            said = f"{name}: mean {found['mean']:,.1f}, largest {found['largest']:,}"
            drawn = svg.columns(name.lower(), found["bins"], EDGES.tolist(), colour)
            plots.append((said, drawn))
    return plots


def _job(report: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    names = "\n".join(report["inputs"])
    more = report["input_files"] - len(report["inputs"])
    if more > 0:
        names += f"\nand {more:,} more"
    listed: dict[str, Any] = {
        "input": names or "a table in memory",
        **report["job"],
        "engine": report["engine"],
    }
    listed |= {f"engine option {name}": value for name, value in report["engine_options"].items()}
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in listed.items()
        if value not in ("", [], {})
    ]
