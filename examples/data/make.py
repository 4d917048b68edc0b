"""Makes examples/data/functions.parquet of the tiny model's held-out set.

python examples/data/make.py
"""

import json
from pathlib import Path

import polars as pl

HERE = Path(__file__).parent
HELD_OUT = HERE.parent / "tiny_lm" / "heldout.jsonl"
PACKAGES = HERE.parent / "tiny_lm" / "packages.json"


def main() -> None:
    """Write the table."""
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    about = {p["name"]: p for p in json.loads(PACKAGES.read_text(encoding="utf-8"))}
    table = pl.DataFrame(
        {
            "package": [f"{r['package']} {about[r['package']]['version']}" for r in rows],
            "licence": [about[r["package"]]["licence"] for r in rows],
            "name": [r["name"] for r in rows],
            "code": [r["code"] for r in rows],
            "docstring": [r["doc"] for r in rows],
        }
    )
    table.write_parquet(HERE / "functions.parquet")


if __name__ == "__main__":
    main()
