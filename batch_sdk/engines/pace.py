"""Which options of an engine shape the rows, and which only say how fast and where they are computed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Options that may differ when a job is resumed. What is not named here, and what a later version adds, counts as
# shaping the rows: refused without need is better than half a table from another set-up.
_HTTP = "url|api_key|api_key_env|headers|max_concurrency|timeout_seconds|max_retries|retry_seconds|down_seconds|seed"
_DUMMY = "shuffle|seed|delay_seconds|fail_on|die_on|die_after_requests"
_SGLANG = (
    # how many processes, which devices, and how they find each other
    r"\w+_size|nnodes|node_rank|dist_\w+|device|base_gpu_id|gpu_id_step|numa_node|nccl_port|embedding_replicas",
    r"cpu_threads_per_rank|\w+_worker_num|enable_(dp_\w+|p2p_check|nccl_nvls|symm_mem|mscclpp|torch_symm_mem)",
    r"enable_shift_parallel|shift_parallel_threshold|load_balance_method|disable_custom_all_reduce|use_ray",
    # memory and scheduling
    r"mem_fraction_static|max_(running_requests|queued_requests|total_tokens|prefill_tokens)|window_tokens",
    r"prefill_max_requests|schedule_\w+|retraction_policy|num_continuous_decode_steps|stream_interval",
    r"enable_(mixed_chunk|dynamic_chunking|tokenizer_batch_encode|dynamic_batch_tokenizer|memory_saver)",
    r"embedding_step_tokens|enable_fast_embedding|swa_full_tokens_ratio|(cpu_)?offload_\w+|\w*prefill_delayer\w*",
    r"disable_(overlap_schedule|radix_cache|chunked_prefix_cache|tokenizer_batch_decode)|enable_two_batch_overlap",
    r"radix_eviction_policy|enable_hierarchical_cache|hicache_\w+|enable_(lmcache|flexkv)|(lmcache|flexkv)_\w+",
    # kernels and graphs: they round differently, as another tp_size does. Grammars are read by their backend.
    r"(?!grammar_|tokenizer_)\w+_backend|\w*cuda_graph\w*|enable_torch_compile|torch_compile_max_bs",
    r"triton_attention_\w+|disable_flashinfer_autotune|random_seed|enable_deterministic_inference",
    # drafts are checked by the model, unless the thresholds let others pass
    r"speculative_(?!accept_threshold|use_rejection)\w+|enable_suffix_decoding|suffix_\w+",
    # where files come from, and what is said, served and measured
    r"download_dir|weight_loader_\w+|watchdog_timeout|soft_watchdog_timeout|sleep_on_idle|gc_\w+",
    r"log_\w+|\w*_log_\w+|show_time_cost|\w*metrics\w*|enable_cache_report|enable_trace|trace_\w+|crash_dump_folder",
    r"host|port|\w+_port|ssl_\w+|api_key|admin_api_key|served_model_name|skip_server_warmup|custom_sigquit_handler",
)
_PACE = {"sglang": "|".join(_SGLANG), "http": _HTTP, "dummy": _DUMMY}


def shaping(engine: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an engine's options that decide what a row becomes.

    Args:
        engine: the engine's name. Of one that is not the SDK's own, all options count.
        options: as they were given.
    """
    pace = re.compile(_PACE.get(engine, "(?!)"))
    return {name: value for name, value in options.items() if not pace.fullmatch(name)}
