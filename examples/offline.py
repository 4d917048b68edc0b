"""SwiftKV, a draft head and suffix decoding in this process: `sglang.Engine` with this plugin's keywords.

    python examples/offline.py                                  # the tiny models; no GPU is needed
    python examples/offline.py --ranks 2                        # with Shift Parallelism
    python examples/offline.py --model M --head H               # with a draft head that was trained for M

For tables there is `batch_sdk` (examples/batch.py), whose `engine_options` takes the same keywords.
"""

import argparse
from pathlib import Path
from typing import Any

import polars as pl
import sglang

HERE = Path(__file__).parent
# Of the server's arguments. `swiftkv_min_tokens` is None with a model that is not SwiftKV.
TOLD = ("model_path", "swiftkv_min_tokens", "speculative_algorithm", "enable_suffix_decoding")
SHIFT = ("threshold", "steps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What examples/serving.py is asked, too."""
    parser.add_argument(
        "--model", help="folder or name on the hub; default: the tiny SwiftKV model and its head"
    )
    parser.add_argument("--head", help="a draft head for --model; without it suffix decoding drafts alone")
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="from 2 on: Shift Parallelism over N"
    )


def options(args: argparse.Namespace) -> dict[str, object]:
    """Keywords of the engine."""
    found: dict[str, object] = {"model_path": args.model or str(HERE / "tiny_lm" / "swiftkv")}
    head = args.head
    if args.model is None:
        head = head or str(HERE / "tiny_lm" / "speculator")
        found["swiftkv_min_tokens"] = 40  # so that prompts as short as these stop at the cut
    if head:
        found |= {"speculative_algorithm": "ARCTIC", "speculative_draft_model_path": head}
        found["enable_suffix_decoding"] = True
    else:
        found["speculative_algorithm"] = "SUFFIX"
    if args.ranks > 1:
        found |= {"ulysses_sequence_parallel_size": args.ranks, "enable_shift_parallel": True}
    return found


def questions() -> list[str]:
    """Functions, of which the last is asked twice: the suffix index knows the answer then."""
    codes = pl.read_parquet(HERE / "data" / "functions.parquet")["code"].head(3).to_list()
    return [*codes, codes[-1]]


def told(info: dict[str, Any]) -> dict[str, object]:
    """What the features say in `/server_info`."""
    shift = info["internal_states"][0].get("shift", {})
    return {name: info[name] for name in TOLD} | {f"shift_{name}": shift[name] for name in SHIFT if shift}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    with sglang.Engine(**options(parser.parse_args()), log_level="error") as engine:
        chat = engine.tokenizer_manager.tokenizer.apply_chat_template
        sampling = {"temperature": 0, "max_new_tokens": 48}
        for question in questions():
            prompt = chat([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
            answer = engine.generate(prompt, sampling)
            print(f"{answer['text']}  ({answer['meta_info'].get('spec_accept_length', 1):.1f} tokens a step)")
        for chunk in engine.generate(prompt, sampling, stream=True):
            print(chunk["text"])
        print(told(engine.get_server_info()))


if __name__ == "__main__":  # SGLang starts processes that import this file again
    main()
