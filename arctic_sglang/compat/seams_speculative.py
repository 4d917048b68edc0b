"""Every touch of SGLang's internals by speculative decoding."""

from arctic_sglang.compat.seam import EVERYWHERE, Kind, Role, Seam
from arctic_sglang.features import Feature

_EXIT = "suffix decoding and LSTM heads in SGLang"


def _row(
    name: str, target: str, why: str, *, kind: Kind = Kind.CALL, params: tuple[str, ...] = (),
    members: tuple[str, ...] = (), hook: str = "", roles: frozenset[Role] = frozenset({Role.SCHEDULER}),
) -> Seam:  # fmt: skip
    return Seam(
        id=f"{Feature.SPECULATION}.{name}", target=f"sglang.srt.{target}", kind=kind, feature=Feature.SPECULATION,
        why=why, hook=hook, params=params, members=members, roles=roles, exit=_EXIT,
    )  # fmt: skip


ROWS: tuple[Seam, ...] = (
    _row(
        "registry", "speculative.spec_info.SpeculativeAlgorithm", "Where SGLang looks an algorithm up.",
        kind=Kind.REGISTER, hook="speculative.sglang_worker.algorithm:register", members=("register",),
        roles=EVERYWHERE,
    ),
    _row("known", "speculative.spec_registry.get_spec", "Whether the algorithm is registered.", params=("name",)),
    _row(
        "algorithm", "speculative.spec_registry.CustomSpecAlgo", "What SGLang asks of an algorithm.",
        kind=Kind.SUBCLASS,
        members=("is_speculative", "has_draft_kv", "supports_grammar_overlap", "create_worker"),
    ),
    _row(
        "assign", "mem_cache.allocation.assign_req_to_token_pool_func",
        "SGLang has this function for GPUs, and for CPUs with its own kernels alone.",
        kind=Kind.AROUND, hook="speculative.sglang_worker.cpu:around_assign",
        params=("req_pool_indices", "req_to_token", "start_offset", "end_offset", "out_cache_loc", "batch_size"),
    ),
    _row(
        "slots", "speculative.eagle_utils.eagle_prepare_for_decode",
        "SGLang hands out KV slots in every step, and past the end of a row where the context is nearly full.",
        kind=Kind.AROUND, hook="speculative.sglang_worker.slots:around_prepare_for_decode", params=("batch",),
    ),
    _row("alloc", "mem_cache.allocation.alloc_for_spec_decode", "Hands out KV slots.",
         params=("tree_cache", "req_to_token_pool", "reqs", "req_pool_indices", "cur_kv_lens", "cur_kv_lens_cpu",
                 "nxt_kv_lens", "nxt_kv_lens_cpu", "num_needed_tokens", "batch")),
    _row("cache", "mem_cache.base_prefix_cache.BasePrefixCache", "How many KV slots may be handed out ahead.",
         members=("supports_swa", "evictable_size")),
    _row("schedule_batch", "managers.schedule_batch.ScheduleBatch", "A step's requests, and where each one's rows end.",
         members=("reqs", "extend_lens", "spec_info", "seq_lens_cpu", "return_hidden_states")),
    _row("request", "managers.schedule_batch.Req", "What a request has said, and whether a step will have it.",
         members=("is_retracted", "finished", "output_ids", "kv_committed_len")),
    _row("reserve", "mem_cache.allocation_sizing.get_alloc_reserve_per_decode",
         "Tokens that two steps with the widest drafts take, as SGLang counts on them."),
    _row(
        "draft_pool", "mem_cache.kv_cache_builder.get_draft_kv_pool",
        "SGLang takes it that every draft has a model with a KV cache of its own.",
        kind=Kind.AROUND, hook="speculative.sglang_worker.algorithm:around_get_draft_kv_pool",
        params=("spec_algorithm",),
    ),
    _row(
        "torch_attention", "layers.attention.torch_native_backend.TorchNativeAttnBackend.init_forward_metadata",
        "SGLang's torch attention reads lengths that it sets for prefills alone.",
        kind=Kind.BEFORE, hook="speculative.sglang_worker.cpu:before_init_forward_metadata",
        params=("self", "forward_batch"),
    ),
    _row("worker", "speculative.base_spec_worker.BaseSpecWorker", "What the scheduler calls for every step.",
         kind=Kind.SUBCLASS,
         members=("draft_worker", "alloc_memory_pool", "init_attention_backends", "init_cuda_graphs",
                  "on_verify_complete_cpu", "note_request_finished", "clear_cache_pool")),
    _row("input", "speculative.spec_info.SpecInput", "What travels from step to step.", kind=Kind.SUBCLASS),
    _row("input_type", "speculative.spec_info.SpecInputType", "Which kind of input it is.",
         members=("EAGLE_DRAFT",)),
    _row("chain", "speculative.dflash_info.DFlashVerifyInput",
         "A step that verifies one path per request, which every attention backend knows as causal.",
         members=("draft_token", "positions", "draft_token_num", "custom_mask", "capture_hidden_mode")),
    _row("graphs", "model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner",
         "Captures and replays the steps of one width.", kind=Kind.SUBCLASS,
         params=("model_runner", "attn_backend", "speculative_num_steps", "speculative_num_draft_tokens"),
         members=("get_spec_info", "_make_graph_key")),
    _row("logits", "model_executor.graph_shared_output.GraphSharedOutput",
         "What all graphs write logits to has rows for plain decode; a wide step needs more.",
         params=("device", "max_rows"), members=("get_logits_buffer",)),
    _row("future_map", "managers.overlap_utils.FutureMap",
         "Relays a step's tokens to the next with overlap; SGLang's reading back needs a GPU's streams.",
         kind=Kind.SUBCLASS, params=("device", "spec_algo"),
         members=("_resolve_spec_extras", "resolve_seq_lens_cpu", "stash", "publish")),
    _row("batch", "model_executor.forward_batch_info.ForwardBatch", "A step, as the model sees it.",
         members=("init_new",)),
    _row("mode", "model_executor.forward_batch_info.ForwardMode", "What a step does.",
         members=("TARGET_VERIFY", "is_target_verify")),
    _row("hidden_mode", "model_executor.forward_batch_info.CaptureHiddenMode", "Whose hidden states are wanted.",
         members=("NULL", "LAST", "FULL")),
    _row("prefill", "managers.tp_worker.TpModelWorker.forward_batch_generation",
         "The head asks for the state of each prompt's last token.", params=("batch", "capture_hidden_mode")),
    _row("grammar_tree", "speculative.spec_utils.GrammarTree", "A draft, as grammars walk it.",
         members=("from_linear_chain",)),
    _row("grammar_mask", "speculative.spec_utils.build_grammar_vocab_mask", "Which tokens a grammar allows.",
         params=("reqs", "tree", "sampling_info", "device", "barrier")),
    _row("logprobs", "layers.logprob_processor.compute_spec_v2_logprobs", "Logprobs of accepted tokens.",
         params=("batch", "logits_output", "predict", "accept_index", "speculative_num_steps")),
    _row("group", "distributed.parallel_state.get_tp_group", "Ranks agree on samples and costs."),
    _row("context", "runtime_context.get_context", "SGLang's settings while a width is captured."),
    _row("spec", "runtime_context.get_spec", "SGLang's settings of speculation."),
    _row("recurrent", "configs.hybrid_arch.mambaish_config", "Whether a model has recurrent layers.",
         params=("model_config",)),
    _row("args", "server_args.ServerArgs", "What SGLang made of the flags.",
         members=("speculative_algorithm", "speculative_num_steps", "speculative_eagle_topk",
                  "speculative_num_draft_tokens", "speculative_draft_model_path", "return_hidden_states_mode",
                  "disable_overlap_schedule")),
)  # fmt: skip
