"""A batch job in Python: docstrings for a table of functions, then their vectors.

python examples/batch.py                   # SGLang, on a GPU or on the CPU
python examples/batch.py --engine dummy    # no model, in a second
"""

import argparse
from pathlib import Path

import polars as pl

import batch_sdk as bs

HERE = Path(__file__).parent


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="sglang", choices=["sglang", "dummy"])
    parser.add_argument("--rows", type=int, default=20)
    args = parser.parse_args()

    functions = pl.read_parquet(HERE / "data" / "functions.parquet").head(args.rows)
    model = str(HERE / "tiny_lm" / "model")
    docs = bs.generate(
        functions, prompt="{{ code }}", model=model, engine=args.engine, temperature=0, keep=["name"]
    )
    print(docs.select("name", "response", "completion_tokens"))

    # Vectors of the tiny model's last token: no good ones, but they need no second model.
    vectors = bs.embed(
        docs, column="response", model=model, engine=args.engine, keep=["name"], details_prefix="embed_"
    )
    print(vectors.select("name", "embedding"))


if __name__ == "__main__":  # SGLang starts processes that import this file again
    main()
