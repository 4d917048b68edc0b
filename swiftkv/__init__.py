"""SwiftKV: models that skip about half of the prefill, served, converted and distilled.

layout, names   which layers own keys and values; what a checkpoint's tensors are for (pure)
config          the configs of such models, by the names of Snowflake's checkpoints
models          SGLang's side: the served models            hf         the slow twin in transformers
rows, limits    which rows of a prefill go up; what is refused (pure)
kv_write        rotation and the write to the cache, one kernel for all layers
convert, distill, evaluate   commands: `python -m swiftkv.convert --help`
cost            operations of a prefill, with and without (pure)
"""
