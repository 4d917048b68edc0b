"""The vectorised road's rows of the table of seams."""

from arctic_sglang.compat.seam import Kind, Role, Seam
from arctic_sglang.features import Feature

_SCHEDULER = frozenset({Role.SCHEDULER})
_MAIN = frozenset({Role.MAIN})
_EXIT = "a vectorised road for embeddings in SGLang"


def _call(name: str, target: str, why: str, **what: tuple[str, ...]) -> Seam:
    return Seam(
        id=f"embedding.{name}",
        target=target,
        kind=Kind.CALL,
        feature=Feature.EMBEDDING,
        why=why,
        roles=_SCHEDULER,
        exit=_EXIT,
        **what,
    )


ROWS: tuple[Seam, ...] = (
    Seam(
        id="embedding.scheduler",
        target="sglang.srt.managers.scheduler.Scheduler.__init__",
        kind=Kind.AFTER,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.scheduler:after_init",
        params=("self",),
        roles=_SCHEDULER,
        why="The lane uses the model that the scheduler has loaded, and answers on its sockets.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.turn",
        target="sglang.srt.managers.scheduler.Scheduler.process_input_requests",
        kind=Kind.AFTER,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.scheduler:after_input",
        params=("self", "recv_reqs"),
        roles=_SCHEDULER,
        why="Every event loop calls it once a turn, between taking messages in and running a batch.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.idle",
        target="sglang.srt.managers.scheduler.Scheduler.is_fully_idle",
        kind=Kind.AFTER,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.scheduler:after_idle",
        params=("self", "for_health_check"),
        roles=_SCHEDULER,
        why="Idle checks and weight updates must see the lane's work.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.manager",
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager.__init__",
        kind=Kind.AFTER,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.manager:after_init",
        params=("self", "server_args"),
        roles=_MAIN,
        why="The front door stands where requests come in, on the manager's sockets.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.request",
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        kind=Kind.AROUND,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.manager:around_generate_request",
        params=("self", "obj", "request"),
        roles=_MAIN,
        why="Engine.encode and SGLang's own routes ask here, one object per row from here on.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.manager_parts",
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager",
        kind=Kind.CALL,
        feature=Feature.EMBEDDING,
        members=(
            "_dispatch_to_scheduler",
            "_result_dispatcher",
            "auto_create_handle_loop",
            "context_len",
            "is_pause",
            "is_pause_cond",
            "model_update_lock",
            "num_reserved_tokens",
            "server_args",
            "tokenizer",
        ),
        roles=_MAIN,
        why="The front door keeps to the manager's pauses and weight updates.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.dispatcher",
        target="sglang.utils.TypeBasedDispatcher",
        kind=Kind.CALL,
        feature=Feature.EMBEDDING,
        members=("__iadd__",),
        why="Adds the road's messages to those that SGLang's processes understand.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.input",
        target="sglang.srt.managers.io_struct.EmbeddingReqInput",
        kind=Kind.CALL,
        feature=Feature.EMBEDDING,
        members=("text", "input_ids", "dimensions", "normalize_batch_and_arguments"),
        roles=_MAIN,
        why="What a request asks for decides which road it takes.",
        exit=_EXIT,
    ),
    _call(
        "scheduler_parts",
        "sglang.srt.managers.scheduler.Scheduler",
        "The lane's turn, its sockets and its model.",
        members=("_engine_paused", "_request_dispatcher", "ipc_channels", "server_args", "tp_worker"),
    ),
    _call(
        "runner",
        "sglang.srt.model_executor.model_runner.ModelRunner",
        "The model, its device and its type.",
        members=("device", "dtype", "gpu_id", "model"),
    ),
    _call(
        "bert",
        "sglang.srt.models.bert.BertEncoder",
        "The layers whose weights the fused forward uses.",
        members=("layer",),
    ),
    _call(
        "attention",
        "sglang.srt.layers.radix_attention.RadixAttention",
        "What a model's attention layers ask for.",
        members=(
            "attn_type", "is_cross_attention", "logit_cap", "qk_head_dim", "scaling", "sliding_window_size",
            "tp_k_head_num", "tp_q_head_num", "tp_v_head_num", "v_head_dim",
        ),
    ),
    _call(
        "backend",
        "sglang.srt.layers.attention.base_attn_backend.AttentionBackend",
        "Attention within packed rows, without a cache.",
        members=("forward",),
    ),
    _call(
        "context",
        "sglang.srt.model_executor.forward_context.ForwardContext",
        "Names the attention backend of a forward.",
        members=("attn_backend",),
    ),
    _call(
        "in_context",
        "sglang.srt.model_executor.forward_context.forward_context",
        "Puts the packed backend in place for one step.",
        params=("ctx",),
    ),
    _call(
        "batch",
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch",
        "A step as SGLang's models take one.",
        members=("forward_mode", "input_ids", "positions", "extend_seq_lens", "extend_seq_lens_cpu", "seq_lens"),
    ),
    _call(
        "mode",
        "sglang.srt.model_executor.forward_batch_info.ForwardMode",
        "A step is a prefill.",
        members=("EXTEND",),
    ),
    _call(
        "flash",
        "sglang.kernels.ops.attention.flash_attention.flash_attn_varlen_func",
        "Attention for packed rows on Hopper GPUs.",
        params=(
            "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal",
        ),
    ),
)  # fmt: skip
