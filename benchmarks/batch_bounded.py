"""Claim: a table of any size streams through `batch_sdk` at a bounded memory and a known speed.

Writes a synthetic Parquet file (`id`, `title`, `body` of about 220 characters; rows differ, nothing is compressed, so
that 10 million rows are over 2 GB), then runs `embed` and `generate` over it with the `dummy` engine, each in a
process of its own that samples its memory. What is measured is the SDK: reading, prompts, bookkeeping, writing.
The dummy's own work, a hash a row, is in the figures.

    python benchmarks/batch_bounded.py                    # 10 million rows, minutes
    python benchmarks/batch_bounded.py --rows 200000      # to see that it runs

The JSON has the memory over the rows done; the plot is written beside it as SVG.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

BARS = {"embed": 150_000, "generate": 60_000}  # rows a second
PEAK_GB = 1.2
GROUP_ROWS = 100_000
POOL = 4096
WORDS = 32


def write_table(path: Path, rows: int) -> None:
    """Rows whose texts are drawn from a pool, with the row's number in front, so that no two are equal."""
    draw = np.random.default_rng(0)
    words = np.array([f"word{index:02d}" for index in range(100)])
    pool = pa.array([" ".join(words[draw.integers(0, 100, WORDS)]) for _ in range(POOL)])
    schema = pa.schema([("id", pa.int64()), ("title", pa.string()), ("body", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP_ROWS):
            ids = pa.array(np.arange(start, min(rows, start + GROUP_ROWS)))
            numbers = ids.cast(pa.string())
            texts = pool.take(pa.array(draw.integers(0, POOL, len(ids))))
            titles = pa.compute.binary_join_element_wise("title", numbers, " ")
            bodies = pa.compute.binary_join_element_wise(numbers, texts, " ")
            writer.write_table(pa.table([ids, titles, bodies], schema=schema))


class Sampler(threading.Thread):
    """Notes this process's memory and how many rows are done, ten times a second at first, then ever more rarely.

    Args:
        rows_done: asked for the rows that are done.
    """

    def __init__(self, rows_done: Any) -> None:
        super().__init__(daemon=True)
        self.points: list[tuple[int, float]] = []
        self._rows_done, self._process, self._over = rows_done, psutil.Process(), threading.Event()

    def run(self) -> None:
        """Samples until `finish`."""
        while not self._over.wait(0.1 * (1 + len(self.points) // 100)):
            self.points.append((self._rows_done(), round(self._process.memory_info().rss / 1e9, 4)))

    def finish(self) -> list[tuple[int, float]]:
        """Ends it; the points, gigabytes by rows."""
        self._over.set()
        self.join()
        return self.points


def run(command: str, table: Path, output: Path) -> dict[str, Any]:
    """One job in this process."""
    import batch_sdk

    task = "embed" if command == "embed" else "generate"
    with batch_sdk.create_engine("dummy", model="dummy", task=task) as engine:
        block = 64 if command == "embed" else 1
        sampler = Sampler(lambda: engine.answered * block)
        sampler.start()
        shared = {"model": engine, "output": str(output), "progress": False}
        if command == "embed":
            summary = batch_sdk.embed(str(table), column="body", **shared)
        else:
            prompt = "Summarise {{ title }} in one sentence: {{ body }}"
            summary = batch_sdk.generate(str(table), prompt=prompt, **shared)
        points = sampler.finish()
    return {
        "rows": summary.rows, "error_rows": summary.error_rows, "seconds": round(summary.seconds, 3),
        "rows_per_second": round(summary.rows_per_second, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 4),
        "memory_gb_by_rows": points,
    }  # fmt: skip


def flatness(points: list[tuple[int, float]], rows: int) -> float:
    """The highest memory of the last half of the rows over that of the second tenth to the half."""
    late = [gb for done, gb in points if done >= rows / 2]
    early = [gb for done, gb in points if rows / 10 <= done < rows / 2]
    return round(max(late) / max(early), 3) if late and early else float("nan")


def plot(found: dict[str, dict[str, Any]], rows: int) -> str:
    """Memory over rows as SVG."""
    width, height, left, bottom = 640, 300, 60, 40
    top = 1.1 * max(PEAK_GB, *(result["peak_gb"] for result in found.values()))

    def place(done: float, gb: float) -> str:
        x = left + (width - left - 10) * done / rows
        return f"{x:.1f},{height - bottom - (height - bottom - 10) * gb / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<polyline points="{place(0, top)} {place(0, 0)} {place(rows, 0)}" fill="none" stroke="black"/>',
        f'<polyline points="{place(0, PEAK_GB)} {place(rows, PEAK_GB)}" fill="none" stroke="grey" '
        'stroke-dasharray="4"/>',
        f'<text x="{left + 6}" y="24">resident memory, GB, over rows done; dashed: {PEAK_GB} GB</text>',
        f'<text x="{width - 10}" y="{height - 16}" text-anchor="end">{rows:,} rows</text>',
    ]
    for (command, result), color in zip(found.items(), ("#1f77b4", "#d95f02"), strict=False):
        line = " ".join(place(min(done, rows), gb) for done, gb in result["memory_gb_by_rows"])
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        at = 44 + 16 * list(found).index(command)
        parts.append(
            f'<text x="{left + 6}" y="{at}" fill="{color}">{command}: peak {result["peak_gb"]} GB</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    """Writes the table, runs both commands, prints and writes the result; 1 if a bar is missed."""
    options = common.parser(__doc__)
    options.add_argument("--rows", type=int, default=10_000_000)
    options.add_argument("--commands", nargs="+", choices=BARS, default=list(BARS))
    options.add_argument("--folder", type=Path, help="where the table and the outputs go (a temporary one)")
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        command, table, output = args.child
        print(json.dumps(run(command, Path(table), Path(output))))
        return 0
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        table = Path(folder) / "table.parquet"
        write_table(table, args.rows)
        size = round(table.stat().st_size / 1e9, 3)
        for command in args.commands:
            child = [sys.executable, __file__, "--child", command, str(table), str(Path(folder) / command)]
            found[command] = json.loads(
                subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            found[command]["late_over_early_memory"] = flatness(
                found[command]["memory_gb_by_rows"], args.rows
            )
    met = {
        command: {
            "rows_per_second": result["rows_per_second"] >= BARS[command],
            "peak_gb": result["peak_gb"] < PEAK_GB,
            "all_rows": result["rows"] == args.rows and not result["error_rows"],
        }
        for command, result in found.items()
    }
    content = {
        "rows": args.rows,
        "table_gb": size,
        "cpus": len(psutil.Process().cpu_affinity()),
        "met": met,
        "commands": found,
    }
    common.write("batch_bounded", content, args.out, args.commit)
    (args.out / "batch_bounded.svg").write_text(plot(found, args.rows), encoding="utf-8")
    return 0 if all(all(row.values()) for row in met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
