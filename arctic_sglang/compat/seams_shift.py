"""Every touch of SGLang's internals by Shift Parallelism."""

from arctic_sglang.compat.seam import Kind, Role, Seam
from arctic_sglang.features import Feature

_EXIT = "Ulysses sequence parallelism in SGLang"


def _row(
    name: str, target: str, why: str, *, kind: Kind = Kind.CALL, params: tuple[str, ...] = (),
    members: tuple[str, ...] = (), hook: str = "", role: Role = Role.SCHEDULER,
) -> Seam:  # fmt: skip
    return Seam(
        id=f"shift.{name}", target=f"sglang.srt.{target}", kind=kind, feature=Feature.SHIFT, why=why,
        hook=hook, params=params, members=members, roles=frozenset({role}), exit=_EXIT,
    )  # fmt: skip


def _updates(source: str) -> Seam:
    return _row(
        f"update_{source}",
        f"model_executor.model_runner_components.weight_updater.WeightUpdater.update_weights_from_{source}",
        "Quantised weights cannot be loaded again.", kind=Kind.AROUND,
        hook="arctic_sglang.shift.model:around_update", params=("self",),
    )  # fmt: skip


def _sized(name: str, layer: str) -> Seam:
    return _row(
        name, f"layers.linear.{layer}.__init__", "A layer is loaded for the base tensor parallelism.",
        kind=Kind.BEFORE, hook="arctic_sglang.shift.model:before_linear_init", params=("tp_rank", "tp_size"),
    )  # fmt: skip


ROWS: tuple[Seam, ...] = (
    _sized("column_init", "ColumnParallelLinear"),
    _sized("merged_init", "MergedColumnParallelLinear"),
    _sized("qkv_init", "QKVParallelLinear"),
    _sized("row_init", "RowParallelLinear"),
    _row(
        "loaded", "model_executor.model_runner.ModelRunner.maybe_apply_post_load_model_transforms",
        "The model is loaded, and neither its memory measured nor its graphs captured.",
        kind=Kind.AFTER, hook="arctic_sglang.shift.model:after_load", params=("self",),
    ),
    _row(
        "step", "model_executor.model_runner.ModelRunner.forward",
        "Steps by mode are counted: a CUDA graph runs without the model's own forward.",
        kind=Kind.AFTER, hook="arctic_sglang.shift.model:after_forward", params=("self", "forward_batch"),
    ),
    _row("graph", "model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner", "A graph's tokens.",
         members=("execute",)),
    _row(
        "told", "managers.scheduler.Scheduler.get_internal_state", "Steps and tokens by mode are the scheduler's.",
        kind=Kind.AFTER, hook="arctic_sglang.shift.model:after_internal_state", params=("self", "recv_req"),
    ),
    _row(
        "published", "managers.scheduler.Scheduler.init_metrics_reporter", "The same, beside SGLang's own at /metrics.",
        kind=Kind.AFTER, hook="arctic_sglang.shift.model:after_metrics_reporter", params=("self",),
    ),
    _row("labels", "observability.metrics_collector.SchedulerMetricsCollectorContext", "Who publishes, and as whom.",
         members=("current_scheduler_metrics_enabled", "collector")),
    _row(
        "failed", "managers.tokenizer_manager.SignalHandler.running_phase_sigquit_handler",
        "A rank that is gone ends the server at once; ranks that wait for it on a GPU would hold it up for a minute.",
        kind=Kind.AROUND, hook="arctic_sglang.shift.ending:around_sigquit", params=("self",), role=Role.MAIN,
    ),
    _row("watched", "utils.watchdog.SubprocessWatchdog", "The processes of a server, by name.", role=Role.MAIN,
         members=("_processes", "_names")),
    _row("watches", "managers.tokenizer_manager.TokenizerManager", "Has the watchdog.", role=Role.MAIN,
         members=("_subprocess_watchdog", "crash_dump_folder")),
    _row("state", "managers.io_struct.GetInternalStateReqOutput", "What /server_info tells of a scheduler.",
         members=("internal_state",)),
    _row("runner", "model_executor.model_runner.ModelRunner", "The model and its config.",
         members=("model", "model_config", "server_args")),
    _row("updater", "model_executor.model_runner_components.weight_updater.WeightUpdater.update_weights_from_tensor",
         "One of its ways would write to a part of the weights.", kind=Kind.AROUND,
         hook="arctic_sglang.shift.model:around_update_from_tensor", params=("self", "named_tensors", "load_format")),
    _updates("disk"), _updates("distributed"), _updates("ipc"),
    _row("updating", "model_executor.model_runner_components.weight_updater.WeightUpdater", "Whose weights they are.",
         members=("get_model_runner",)),
    _row("plain", "layers.quantization.unquant.UnquantizedLinearMethod", "torch's linear.", members=("apply",)),
    _row("fp8", "layers.quantization.fp8.Fp8LinearMethod", "Keeps an fp8 weight transposed, scales of rows with it.",
         members=("apply", "use_marlin", "block_quant", "process_weights_after_loading")),
    _row("ct", "layers.quantization.compressed_tensors.compressed_tensors.CompressedTensorsLinearMethod",
         "Asks the scheme of a layer.", members=("apply",)),
    _row("ct_fp8",
         "layers.quantization.compressed_tensors.schemes.compressed_tensors_w8a8_fp8.CompressedTensorsW8A8Fp8",
         "Does as Fp8LinearMethod.", members=("apply_weights", "weight_block_size", "process_weights_after_loading")),
    _row("column", "layers.linear.ColumnParallelLinear", "Is switched.", members=("forward", "weight_loader")),
    _row("merged", "layers.linear.MergedColumnParallelLinear", "Gate and up.", members=("output_partition_sizes",)),
    _row("qkv", "layers.linear.QKVParallelLinear", "Query, key and value.", members=("head_size", "v_head_size")),
    _row("row", "layers.linear.RowParallelLinear", "Attention's output, and down.",
         members=("forward", "tp_rank", "tp_size")),
    _row("embedding", "layers.vocab_parallel_embedding.VocabParallelEmbedding", "Rows of the ids that a rank has.",
         members=("forward", "org_vocab_size")),
    _row("arguments", "server_args.ServerArgs", "What SGLang made of the flags, before anything is loaded.",
         members=("override", "chunked_prefill_size", "max_prefill_tokens", "cuda_graph_config",
                  "post_capture_kv_sizing_planned")),
    _row("vocabulary", "layers.vocab_parallel_embedding.VocabParallelEmbeddingShardIndices", "Which ids a rank has.",
         members=("org_vocab_start_index", "org_vocab_end_index", "num_added_elements")),
    _row("batch", "model_executor.forward_batch_info.ForwardBatch", "Which rows logits are computed of.",
         members=("forward_mode", "return_logprob", "capture_hidden_mode", "multi_item_delimiter_indices",
                  "extend_seq_lens")),
    _row("logits", "layers.logits_processor.LogitsProcessor", "Wants the rows of all tokens.",
         params=(), members=("forward",)),
    _row("pooler", "layers.pooler.Pooler", "Wants them too.", members=("forward",)),
    _row("communicator", "layers.communicator.LayerCommunicator", "Sums between the layers of some models.",
         members=("prepare_attn", "prepare_mlp", "postprocess_layer")),
    _row("experts", "layers.moe.fused_moe_triton.layer.FusedMoE", "Whatever has it sums over ranks."),
    _row("unsummed", "runtime_context.ForwardFlags", "Leaves the sum behind experts to others.", members=("scoped",)),
    _row("forward", "runtime_context.get_forward", "The flags of a layer's forward."),
    _row("group", "distributed.parallel_state.get_tp_group", "All ranks."),
    _row("capture", "distributed.parallel_state.graph_capture", "Steps are timed in graphs.", params=("stream",)),
    _row("attention", "layers.radix_attention.RadixAttention", "Is left out of what is timed.", members=("forward",)),
    _row("timed", "model_executor.forward_batch_info.ForwardBatch", "A step of zeros is timed.",
         members=("forward_mode", "batch_size", "input_ids", "req_pool_indices", "seq_lens", "out_cache_loc",
                  "seq_lens_sum", "positions")),
    _row("context", "model_executor.forward_context.ForwardContext", "What is timed has no cache.",
         members=("attn_backend",)),
    _row("in_context", "model_executor.forward_context.forward_context", "Some models ask for its type.",
         params=("ctx",)),
    _row("args", "runtime_context.get_server_args", "The flags."),
)  # fmt: skip
