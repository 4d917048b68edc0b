"""Nearest neighbours in a table of vectors, to see whether embeddings make sense.

python examples/neighbours.py out/vectors.parquet --rows 5
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl


def nearest(vectors: np.ndarray, row: int, count: int) -> list[tuple[int, float]]:
    """The rows most like `row` by dot product, itself left out: `[(row, similarity), ...]`.

    Args:
        vectors: float `[rows, width]`, each of length 1.
        row: whose neighbours.
        count: how many.
    """
    scores = vectors @ vectors[row]
    scores[row] = -np.inf
    best = np.argsort(-scores)[:count]
    return [(int(i), float(scores[i])) for i in best]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="Parquet with the columns of --text and `embedding`")
    parser.add_argument("--text", default="docstring", help="column to show (docstring)")
    parser.add_argument("--rows", type=int, default=5, help="first rows to show neighbours of (5)")
    parser.add_argument("--count", type=int, default=2, help="neighbours of each (2)")
    args = parser.parse_args()
    table = pl.read_parquet(args.table).filter(pl.col("embedding").is_not_null())
    vectors = np.stack(table["embedding"].to_numpy())
    texts = table[args.text].to_list()
    for row in range(min(args.rows, len(texts))):
        print(texts[row])
        for other, score in nearest(vectors, row, args.count):
            print(f"    {score:.2f}  {texts[other]}")


if __name__ == "__main__":
    main()
