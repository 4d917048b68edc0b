"""What the report shows: figures of each kind, made of the JSON files in one folder.

A kind that has no result says that it is not measured. Results of toy sizes are left out.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import batch_bounded
import plot_embeddings
import plot_shift
import plot_speculation
import plot_swiftkv
import report_deployments
from embed_model import SMOKE
from shapes import TOY, title

# Plots that other pages have too, under the name that they have there.
SHARED = {
    "swiftkv": "swiftkv-work.svg", "speculation_speed": "speculation.svg", "embed_speed": "embeddings.svg",
}  # fmt: skip


SOAKED = {"shift": "Shift Parallelism", "all": "Shift Parallelism, SwiftKV, a draft head and suffix decoding"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A table, or plots, or both, and what they are made of.

    Attributes:
        heading: its title.
        body: Markdown; may be empty.
        more: Markdown behind the plots; may be empty.
        sources: results by the name of their file, without the ending.
        plots: SVG by file name.
    """

    heading: str
    body: str
    sources: dict[str, dict[str, Any]]
    plots: dict[str, str] = field(default_factory=dict)
    more: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Figures of one kind.

    Attributes:
        heading: its title.
        about: what is compared with what, Markdown.
        figures: none if nothing is measured.
    """

    heading: str
    about: str
    figures: list[Figure]


class Results:
    """The JSON files of a folder, but for those of toy sizes.

    Args:
        folder: with the files.

    Raises:
        ValueError: it is no folder, or a file in it is not JSON.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            message = f"{folder} is no folder; one with the JSON files of benchmarks is wanted"
            raise ValueError(message)
        self._found: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                message = f"{path} is not JSON ({error}); measure it again, or move it away"
                raise ValueError(message) from error
            if isinstance(content, dict) and not toy(content):
                self._found[path.stem] = content

    def of(self, *names: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Those of these names, each first and then with anything after an underscore."""
        for name in names:
            for stem, content in self._found.items():
                if stem == name or stem.startswith(f"{name}_"):
                    yield stem, content


def toy(result: dict[str, Any]) -> bool:
    """Whether it was measured to see that the script runs."""
    model = result.get("model")
    width = model.get("hidden_size") if isinstance(model, dict) else None
    return result.get("shape") in ("toy", SMOKE) or width == TOY["hidden_size"]


def sections(found: Results) -> list[Section]:
    """The whole report, in its order."""
    return [
        _deployments(found), _traffic(found), _soak(found), _swiftkv(found), _speculation(found),
        _embeddings(found), _batch(found), _plugin(found),
    ]  # fmt: skip


def _deployments(found: Results) -> Section:
    figures = []
    for name, result in found.of("shift_speed"):
        heading = f"{title(result['shape'])}, {_form(result, result['quantization'])}, {_gpus(result)}"
        more = f"All workloads:\n\n{plot_shift.speed_rows(result)}"
        plots = report_deployments.plots(name, result)
        figures.append(Figure(heading, report_deployments.trifecta(result), {name: result}, plots, more))
    for name, result in found.of("all_on"):
        if name.startswith("all_on_soak"):
            continue
        form = _form(result, result["quantization"])
        what = "Everything on" if "all" in result["arms"] else "SwiftKV under Shift Parallelism"
        heading = f"{what}: {title(result['shape'])}, {form}, {_gpus(result)}, text that "
        heading += {"fresh": "offers nothing to draft", "repeats": "repeats itself"}[result["text"]]
        more = f"All workloads:\n\n{report_deployments.workload_rows(result)}"
        plots = report_deployments.plots(name, result)
        figures.append(Figure(heading, report_deployments.trifecta(result), {name: result}, plots, more))
    for name, result in found.of("shift_exchange"):
        heading = f"Exchanges of sequence parallelism, {result['ranks']} GPUs, microseconds"
        figures.append(Figure(heading, _exchange(result), {name: result}))
    about = (
        "The same GPUs as tensor parallelism (TP) or data parallelism (DP) of stock SGLang, and as Shift Parallelism "
        "or plain Ulysses of this plugin. Prompts are random token ids, the radix cache is off; medians."
    )
    return Section("Deployments: latency and throughput", about, figures)


def _gpus(result: dict[str, Any]) -> str:
    return f"{result['gpus']} GPU{'s' * (result['gpus'] > 1)}"


def _exchange(result: dict[str, Any]) -> str:
    rows = result["microseconds"]
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    lines = [f"| tokens | {' | '.join(kinds)} |", "|---:|" + "---:|" * len(kinds)]
    for tokens, row in rows.items():
        cells = [f"{row[kind]:,.1f}" if kind in row else "" for kind in kinds]
        lines.append(f"| {int(tokens):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _traffic(found: Results) -> Section:
    figures = []
    for name, result in found.of("shift_trace"):
        drawn = {what: plot_shift.over_time(result, what) for what in plot_shift.PLOTS}
        plots = {f"report-{name}-{what.removesuffix('_ms')}.svg": svg for what, svg in drawn.items() if svg}
        heading = f"{title(result['shape'])}, {result['trace']['seconds']:g} s, rates x {result['scale']:g}"
        figures.append(Figure(heading, plot_shift.trace_rows(result), {name: result}, plots))
    about = "Servers over HTTP under a trace with quiet and burst phases, requests sent at their time."
    return Section("Traffic", about, figures)


def _soak(found: Results) -> Section:
    figures = [
        Figure(
            f"{result['requests']:,} requests, {SOAKED[result['arm']]}",
            plot_shift.soak_rows(result),
            {name: result},
        )
        for name, result in found.of("shift_soak", "all_on_soak")
    ]
    about = (
        "Random requests, a part of them hung up on, against one server with weights that tell "
        "tokens apart; fixed prompts are asked before, amid and after."
    )
    return Section("Soak", about, figures)


def _swiftkv(found: Results) -> Section:
    results = dict(found.of("swiftkv"))
    figures = []
    for name, result in results.items():
        options = next(iter(result["arms"].values()), {}).get("options", {})
        heading = f"{title(result['shape'])}, cut {result['cut']} of {result['layers']}, "
        heading += f"{_form(result, options.get('quantization'))}, TP {options.get('tp_size', 1)}"
        ended = [
            f"{arm} ended early: {one['error']}" for arm, one in result["arms"].items() if "error" in one
        ]
        body = "\n\n".join([plot_swiftkv.measured_rows(result), *ended])
        figures.append(Figure(heading, body, {name: result}))
    if results:
        drawn = plot_swiftkv.plot(plot_swiftkv.points(results))
        figures.insert(
            0, Figure("Share of the prefill that is saved", "", results, {SHARED["swiftkv"]: drawn})
        )
    about = (
        "A SwiftKV model with this plugin against the plain model in stock SGLang. A ratio over 1: SwiftKV is "
        "better."
    )
    return Section("SwiftKV", about, figures)


def _form(result: dict[str, Any], quantization: str | None) -> str:
    """How the weights lie, and whether they are real."""
    if result.get("weights", "dummy") == "dummy":
        return f"{quantization or 'bf16'}, dummy weights"
    return f"weights of a checkpoint, {quantization or 'as they are stored'}"


SPECULATION: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "speculation_speed": ("Time of a token, in milliseconds", plot_speculation.speed_table),
    "speculation_acceptance": ("Tokens a step and a second, on text", plot_speculation.acceptance_table),
    "suffix_index": ("The suffix index beside ArcticInference's", plot_speculation.index_table),
    "speculator_draft": ("A draft of the head, in milliseconds", plot_speculation.draft_table),
}


def _speculation(found: Results) -> Section:
    figures = []
    for kind, (heading, table) in SPECULATION.items():
        for name, result in found.of(kind):
            plots = {}
            if kind == "speculation_speed":
                plots[SHARED.get(name, f"report-{name}.svg")] = plot_speculation.plot(result)
            more = f": {title(result['shape'])}" if isinstance(result.get("shape"), str) else ""
            figures.append(Figure(heading + more, table(result), {name: result}, plots))
        if not any(found.of(kind)):
            figures.append(Figure(heading, "Not measured.", {}))
    about = "Suffix decoding and the draft head against no speculation and SGLang's NGRAM."
    return Section("Speculation", about, figures)


def _embeddings(found: Results) -> Section:
    figures = []
    for name, result in found.of("embed_speed"):
        plots = {SHARED.get(name, f"report-{name}.svg"): plot_embeddings.plot(result)}
        weights = result.get("weights", "dummy")
        heading = (
            f"Tokens a second, {result['dtype']}, {weights} weights, {result['shape']['hidden_size']} wide"
        )
        more = f"Over HTTP, 64 requests in flight:\n\n{plot_embeddings.http_table(result)}"
        figures.append(Figure(heading, plot_embeddings.speed_rows(result), {name: result}, plots, more))
    for name, result in found.of("embed_cpu"):
        rates = result["rows_per_second"]
        lines = [
            "| | rows/s |", "|---|---:|", f"| `batch_sdk.embed` | {rates['sdk']:,.1f} |",
            f"| sentence-transformers' `encode` | {rates['sentence_transformers']:,.1f} |",
            f"| ratio | {result['ratio']:.3f} |", f"| least cosine of the two | {result['least_cosine']:.7f} |",
        ]  # fmt: skip
        heading = (
            f"{result['model']} on {result['processors']} cores of {result['processor']}, {result['dtype']}"
        )
        figures.append(Figure(heading, "\n".join(lines), {name: result}))
    about = "The vectorised road of this plugin against stock SGLang; on a CPU against sentence-transformers."
    return Section("Embeddings", about, figures)


def _batch(found: Results) -> Section:
    figures = []
    for name, result in found.of("batch_bounded"):
        lines = ["| command | rows | rows/s | peak memory, GB | error rows |", "|---|---:|---:|---:|---:|"]
        for command, row in result["commands"].items():
            cells = [f"{row['rows']:,}", f"{row['rows_per_second']:,.0f}", f"{row['peak_gb']:.3f}"]
            lines.append(f"| {command} | {' | '.join(cells)} | {row['error_rows']:,} |")
        plots = {
            SHARED.get(name, f"report-{name}.svg"): batch_bounded.plot(result["commands"], result["rows"])
        }
        heading = f"{result['rows']:,} rows of {result['table_gb']:g} GB through the dummy engine"
        figures.append(Figure(heading, "\n".join(lines), {name: result}, plots))
    for name, result in found.of("batch_thin"):
        rates = result["tokens_per_second"]
        named = {"sglang": "SGLang's offline benchmark, token ids", "sdk": "`batch_sdk`, Parquet to Parquet"}
        lines = ["| | tokens/s |", "|---|---:|"]
        lines += [f"| {named[arm]} | {row['median']:,.0f} |" for arm, row in rates.items()]
        lines += [f"| ratio | {result['ratio']:.3f} |"] if result["ratio"] else []
        heading = f"A whole job, {title(result['shape'])}, {result['rows']:,} rows"
        figures.append(Figure(heading, "\n".join(lines), {name: result}))
    both = [one for one in found.of("batch_prefix") if one[1]["ratio"]]
    newest = {
        _ordered(result): (name, result) for name, result in sorted(both, key=lambda one: one[1]["date"])
    }
    figures += [
        Figure(heading, _orders(result), {name: result}) for heading, (name, result) in newest.items()
    ]
    figures += [
        Figure("2,000 rows over HTTP, beside other clients", body, {name: result})
        for name, result in found.of("batch_peers")
        if (body := _peers(result))
    ]
    return Section("Batch jobs", "Tables through `batch_sdk`.", figures)


def _ordered(result: dict[str, Any]) -> str:
    cache = f"a KV cache of {result['cache_tokens']:,} tokens"
    return f"{result['rows']:,} rows that share {result['prefixes']} prefixes, {cache}"


def _orders(result: dict[str, Any]) -> str:
    lines = ["| order | seconds |", "|---|---:|"]
    lines += [f"| {order} | {row['median']:,.1f} |" for order, row in sorted(result["seconds"].items())]
    lines += [f"| table over prefix | {result['ratio']:.3f} |"] if result["ratio"] else []
    return "\n".join(lines)


def _peers(result: dict[str, Any]) -> str | None:
    rows = result["parts"].get("speed", {}).get("2000")
    if rows is None:
        return None
    heads = ("rows_per_second_while_asking", "rows_per_second_whole_command", "peak_mb")
    lines = ["| client | rows/s, asking | rows/s, whole command | peak memory, MB |", "|---|---:|---:|---:|"]
    for peer, row in rows.items():
        lines.append(f"| {peer} | {' | '.join(format(row[head]['median'], ',.0f') for head in heads)} |")
    return "\n".join(lines)


def _plugin(found: Results) -> Section:
    figures = []
    for name, result in found.of("plugin_overhead"):
        lines = [
            "| workload | stock, tokens/s | plugin, tokens/s | plugin over stock |",
            "|---|---:|---:|---:|",
        ]
        for workload, row in result["workloads"].items():
            cells = [f"{row[arm]['median']:,.1f}" for arm in ("stock", "plugin")]
            lines.append(
                f"| {workload} | {' | '.join(cells)} | {result['plugin_over_stock'][workload]:.4f} |"
            )
        figures.append(Figure(f"Installed and unused: {result['shape']}", "\n".join(lines), {name: result}))
    for name, result in found.of("device_parity"):
        if name == "device_parity":
            body = f"{result['equal']} of {result['prompts']} greedy answers of the tiny model are the same."
            figures.append(Figure("GPU against CPU", body, {name: result}))
    return Section("The plugin itself", "What it costs where no flag of it is given.", figures)
