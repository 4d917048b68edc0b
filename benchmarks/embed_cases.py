"""What `embed_speed.py` measures: the cases of each arm, their sizes, and what they are compared by. Pure."""

from dataclasses import dataclass
from typing import Any

from embed_model import SHAPE, SMOKE, flops_per_token

KINDS = ("sdk", "ids", "engine", "tokenize", "sweep", "fair", "http")
SWEEP = (8, 16, 32, 50, 64, 128, 256, 512)
# Stock SGLang takes only rows shorter than its context length, and that leaves room for an answer as well.
STOCK_LONGEST = 510
BATCHES = (64, 1)
ENCODINGS = ("float", "base64")
# Tokens a second that were asked for, and the latency of a single row beside a large request.
BARS = {"sdk 50": 1.8e6, "sdk 512": 2.0e6, "ids 50": 2.2e6, "ids 512": 2.2e6}
HTTP_RATIO = 8.0
FAIR_MS = 50.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        config: of the model.
        short, long: tokens and rows of the two main cases.
        stock_short, stock_long: the same for stock SGLang.
        sweep_tokens: of a sweep's point, about: for ours, for stock.
        sweep_rows: least and most rows of a point: for ours, for stock.
        fair_rows: rows of the large request.
        peak: size of the square product; tokens of a step; seconds for each.
    """

    config: dict[str, Any]
    short: tuple[int, int] = (50, 500_000)
    long: tuple[int, int] = (512, 50_000)
    stock_short: tuple[int, int] = (50, 8_192)
    stock_long: tuple[int, int] = (STOCK_LONGEST, 2_048)
    sweep_tokens: tuple[int, int] = (4_000_000, 1_000_000)
    sweep_rows: tuple[tuple[int, int], tuple[int, int]] = ((8_192, 200_000), (2_048, 8_192))
    fair_rows: int = 100_000
    peak: tuple[int, int, float] = (8192, 16384, 2.0)

    def scaled(self, part: float) -> "Sizes":
        """The same with this part of the rows in the two main cases."""
        (short, few), (long, more) = self.short, self.long
        return Sizes(self.config, (short, int(few * part)), (long, int(more * part)), self.stock_short,
                     self.stock_long, self.sweep_tokens, self.sweep_rows, self.fair_rows, self.peak)  # fmt: skip


FULL = Sizes(SHAPE)
TINY = Sizes(
    SMOKE, (50, 300), (512, 40), (50, 32), (STOCK_LONGEST, 8), (4_000, 2_000), ((8, 100), (4, 32)), 2_000,
    (256, 256, 0.1),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One figure of an arm.

    Attributes:
        name: "sdk 50", "sweep 128", "fair", ...
        question: what the child is asked.
        warm_up: asked once before; None: nothing.
    """

    name: str
    question: dict[str, Any]
    warm_up: dict[str, Any] | None = None


def _embed(name: str, road: str, tokens: int, rows: int, options: dict[str, Any]) -> Case:
    question = {"kind": "embed", "road": road, "tokens": tokens, "rows": rows, **options}
    # As large as the case is where it is small; a twentieth of a large one has every size of step.
    return Case(name, question, {**question, "rows": min(rows, max(rows // 20, 2_048))})


def cases(arm: str, kinds: list[str], sizes: Sizes, options: dict[str, Any]) -> list[Case]:
    """What an engine's arm is asked, in order.

    Args:
        arm: "ours", "stock" or "replicas-N".
        kinds: of `KINDS`.
        sizes: how much.
        options: more keywords of `batch_sdk.embed`.
    """
    stock = arm == "stock"
    made = []
    for tokens, rows in (sizes.stock_short, sizes.stock_long) if stock else (sizes.short, sizes.long):
        if "sdk" in kinds and not stock:
            made.append(_embed(f"sdk {tokens}", "sdk", tokens, rows, options))
        if "ids" in kinds and not stock:
            made.append(_embed(f"ids {tokens}", "sdk_ids", tokens, rows, options))
        if "engine" in kinds and not arm.startswith("replicas"):
            few = rows if stock else max(1, rows // 5)
            made.append(_embed(f"engine {tokens}", "engine", tokens, few, {}))
            made.append(_embed(f"engine ids {tokens}", "engine_ids", tokens, few, {}))
        if "tokenize" in kinds and arm == "ours":
            few = max(1, rows // 5)
            made.append(Case(f"tokenize {tokens}", {"kind": "tokenize", "tokens": tokens, "rows": few}))
    if "sweep" in kinds and not arm.startswith("replicas"):
        made += _sweep(stock, sizes, options)
    if "fair" in kinds and arm == "ours":
        made.append(Case("fair", {"kind": "fair", "tokens": sizes.short[0], "rows": sizes.fair_rows}))
    return made


def _sweep(stock: bool, sizes: Sizes, options: dict[str, Any]) -> list[Case]:
    made = []
    for named in SWEEP:
        tokens = min(named, (sizes.stock_long if stock else sizes.long)[0])
        least, most = sizes.sweep_rows[stock]
        rows = min(max(sizes.sweep_tokens[stock] // tokens, least), most)
        road, more = ("engine", {}) if stock else ("sdk", options)
        made.append(_embed(f"sweep {named}", road, tokens, rows, more))
    return made


def compare(arms: dict[str, Any], config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For every case: the medians of all arms in tokens/s, ratios to stock, shares of the peak, bars.

    A latency (`fair`) has milliseconds instead. Bars are for the real shape alone.
    """
    found = {
        arm: {name: case for name, case in content.get("cases", {}).items() if "error" not in case}
        for arm, content in arms.items()
    }
    peak = found.get("peak", {}).get("peak", {}).get("median")
    table: dict[str, dict[str, Any]] = {}
    for ours, stock in (("ours", "stock"), ("ours-http", "stock-http")):
        for name in dict.fromkeys([*found.get(ours, {}), *found.get(stock, {})]):
            one, other = (found.get(arm, {}).get(name) for arm in (ours, stock))
            key = "fair http" if name == "fair" and ours == "ours-http" else name
            table[key] = _fair(one, other) if name == "fair" else _rates(name, one, other, config, peak)
    table |= {name: _rates(name, one, None, config, peak) for name, one in found.get("core", {}).items()}
    for arm in sorted(arm for arm in found if arm.startswith(("replicas-", "steps-", "fp8"))):
        for name, one in found[arm].items():
            if name != "fair":
                table[f"{name} {arm}"] = _rates(name, one, None, config, peak)
        if arm.startswith("replicas-"):  # measured with a part of the rows, beside each other alone
            for name in found[arm]:
                table[f"{name} {arm}"].pop("bar", None)
    if config != SHAPE:
        for row in table.values():
            row.pop("bar", None)
    return table


def _fair(ours: Any, stock: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"unit": "p95 ms"}
    for arm, figure in (("ours", ours), ("stock", stock)):
        if figure:
            row[arm] = figure["beside_ms"]["p95"]
    if ours:
        row["bar"] = {"below": FAIR_MS, "met": row["ours"] < FAIR_MS}
    return row


def _rates(name: str, ours: Any, stock: Any, config: dict[str, Any], peak: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"unit": "tokens/s"}
    for arm, figure in (("ours", ours), ("stock", stock)):
        if figure:
            row[arm] = round(figure["median"])
    if ours and stock:
        row["ratio"] = round(ours["median"] / stock["median"], 2)
    if ours and peak and not name.startswith("tokenize"):
        flops = flops_per_token(config, ours["tokens_per_row"])
        row["share_of_peak"] = round(ours["median"] * sum(flops.values()) / (peak * 1e12), 3)
    if ours and name in BARS:
        row["bar"] = {"at_least": BARS[name], "met": ours["median"] >= BARS[name]}
    if name.startswith("http 64") and "ratio" in row:
        row["bar"] = {"ratio_at_least": HTTP_RATIO, "met": row["ratio"] >= HTTP_RATIO}
    return row


def show(table: dict[str, dict[str, Any]]) -> str:
    """The comparison as text."""
    form = "{:<26}{:>10}{:>14}{:>14}{:>8}{:>8}  {}"
    lines = [form.format("case", "unit", "stock", "ours", "ratio", "peak", "bar")]
    for name, row in table.items():
        bar = row.get("bar", {})
        wanted = next(
            (f"{key.replace('_', ' ')} {value:,.10g}" for key, value in bar.items() if key != "met"), ""
        )
        verdict = {True: "yes: ", False: "NO: "}.get(bar.get("met"), "") + wanted
        numbers = ["-" if row.get(arm) is None else f"{row[arm]:,}" for arm in ("stock", "ours")]
        ratio, share = (row.get("ratio"), row.get("share_of_peak"))
        lines.append(
            form.format(
                name, row["unit"], *numbers, ratio or "", "" if share is None else f"{share:.1%}", verdict
            ).rstrip()
        )
    return "\n".join(lines)
