"""Parses command lines, a JSON list on stdin, as SGLang's launcher does; prints what became of each."""

import json
import sys

from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.server_args import prepare_server_args  # noqa: E402  # plugins first, as in SGLang's launcher

FIELDS = (
    "tp_size", "dp_size", "quantization", "is_embedding", "speculative_algorithm", "ulysses_sequence_parallel_size",
    "enable_shift_parallel", "enable_fast_embedding", "embedding_replicas", "enable_suffix_decoding",
    "speculative_draft_model_path", "speculative_disable_by_batch_size",
)  # fmt: skip
found = []
for words in json.load(sys.stdin):
    try:
        args = prepare_server_args(words)
        found.append({name: getattr(args, name) for name in FIELDS})
    except (SystemExit, ValueError, AssertionError, RuntimeError) as error:
        found.append(f"{type(error).__name__}: {error}")
print("\n" + json.dumps(found))
