"""Makes examples/data/functions.parquet: everyday functions, then the tiny model's held-out set.

python examples/data/make.py
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

HERE = Path(__file__).parent
TINY = HERE.parent / "tiny_lm"


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write the table."""
    about = {p["name"]: p for p in json.loads((TINY / "packages.json").read_text(encoding="utf-8"))}
    columns = ("package", "licence", "name", "code", "docstring")
    rows = [("everyday", "Apache-2.0", r["name"], r["code"], r["doc"]) for r in read(HERE / "everyday.jsonl")]
    for r in read(TINY / "heldout.jsonl"):
        package = about[r["package"]]
        rows.append(
            (f"{r['package']} {package['version']}", package["licence"], r["name"], r["code"], r["doc"])
        )
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(HERE / "functions.parquet")


if __name__ == "__main__":
    main()
