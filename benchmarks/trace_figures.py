"""What `shift_trace.py` makes of the answers to a trace. Pure."""

import statistics
from typing import Any

import numpy as np
import traffic
from http_stream import Answer

ARMS = ("tp", "dp", "sp", "shift", "all")
BIN_SECONDS = 5
FIELDS = ("at", "phase", "tokens_in", "tokens_out", "late", "ttft", "tpot", "completion", "error")
WITHIN = 1.03  # of the first, to be level with it


def row(request: traffic.Request, answer: Answer, began: float) -> list[Any]:
    """The figures of one request, in the order of `FIELDS`; seconds."""
    planned = began + request.at
    error = answer.error
    if error is None and answer.tokens != request.tokens_out:
        error = f"{answer.tokens} tokens came, and {request.tokens_out} were asked for"
    tpot = None
    if answer.first is not None and request.tokens_out > 1:
        tpot = round((answer.last - answer.first) / (request.tokens_out - 1), 6)
    ttft = None if answer.first is None else round(answer.first - planned, 6)
    return [
        round(request.at, 6), request.phase, request.tokens_in, request.tokens_out,
        round(answer.sent - planned, 6), ttft, tpot, round(answer.last - planned, 6), error,
    ]  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and 95th percentile of all latencies, throughput, and how late the client was.

    Args:
        rows: by `FIELDS`.
    """
    whole = [row for row in rows if row["error"] is None]
    found: dict[str, Any] = {"requests": len(rows), "failed": len(rows) - len(whole)}
    if not whole:
        return found
    for name in ("ttft", "tpot", "completion"):
        values = [1000 * row[name] for row in whole if row[name] is not None]
        middle, high = np.percentile(values, [50, 95]) if values else (None, None)
        found |= {f"{name}_median_ms": _rounded(middle), f"{name}_p95_ms": _rounded(high)}
    seconds = max(row["at"] + row["completion"] for row in whole) - min(row["at"] for row in rows)
    tokens = sum(row["tokens_in"] + row["tokens_out"] for row in whole)
    found["tokens_per_second"] = round(tokens / seconds, 1)
    late = [1000 * row["late"] for row in rows]
    found["late_ms"] = {"median": _rounded(statistics.median(late)), "max": _rounded(max(late))}
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def series(rows: list[dict[str, Any]], seconds: float) -> dict[str, list[Any]]:
    """Offered tokens a second and median latencies of the requests that were planned in each bin of time.

    Args:
        rows: by `FIELDS`.
        seconds: of the trace.
    """
    bins: list[list[dict[str, Any]]] = [[] for _ in range(-int(-seconds // BIN_SECONDS))]
    for found in rows:
        bins[min(int(found["at"] // BIN_SECONDS), len(bins) - 1)].append(found)
    made: dict[str, list[Any]] = {"at": [BIN_SECONDS * (i + 0.5) for i in range(len(bins))]}
    made["tokens_per_second"] = [sum(r["tokens_in"] + r["tokens_out"] for r in b) / BIN_SECONDS for b in bins]
    for name in ("ttft", "tpot"):
        values = [[1000 * r[name] for r in b if r["error"] is None and r[name] is not None] for b in bins]
        made[f"{name}_ms"] = [_rounded(statistics.median(v)) if v else None for v in values]
    return made


def rank(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each figure of all arms, the first of them, and whether shift is it or within 3 %.

    Args:
        arms: the summary of each.
    """
    table = {}
    names = [n for n in next(iter(arms.values()), {}) if n.endswith("_ms") and n != "late_ms"] + [
        "tokens_per_second"
    ]
    for name in names:
        found = {arm: about[name] for arm, about in arms.items() if about.get(name) is not None}
        if not found:
            continue
        best = (max if name == "tokens_per_second" else min)(found, key=lambda arm: found[arm])
        table[name] = {**found, "first": best}
        if "shift" in found:
            behind = found["shift"] / found[best]
            behind = 1 / behind if name == "tokens_per_second" else behind
            table[name] |= {"shift_over_first": round(behind, 4), "met": behind <= WITHIN}
    return table


def show(tables: dict[str, dict[str, Any]]) -> str:
    """The tables as text."""
    form = "{:<7}{:<24}" + "{:>12}" * len(ARMS) + "  {}"
    lines = [form.format("phase", "figure", *ARMS, "shift over the first")]
    for phase, table in tables.items():
        for name, found in table.items():
            cells = [f"{found[arm]:,.2f}" if arm in found else "-" for arm in ARMS]
            told_of = (
                f"{found['shift_over_first']:.3f}{'' if found['met'] else ' NOT MET'}"
                if "met" in found
                else ""
            )
            lines.append(form.format(phase, name, *cells, told_of).rstrip())
    return "\n".join(lines)
