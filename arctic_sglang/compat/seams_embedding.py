"""The vectorised road's rows of the table of seams."""

from dataclasses import replace

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


def _main(name: str, target: str, why: str, **what: tuple[str, ...]) -> Seam:
    return replace(_call(name, target, why, **what), roles=_MAIN)


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
    Seam(
        id="embedding.replicas_ready",
        target="sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
        kind=Kind.AFTER,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.workers:after_launch",
        params=("cls",),
        roles=_MAIN,
        why="Engine and HTTP server alike wait here for their scheduler; replicas load meanwhile.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.replicas_serve",
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager.auto_create_handle_loop",
        kind=Kind.AFTER,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.workers:after_handle_loop",
        params=("self",),
        roles=_MAIN,
        why="The first moment with a running loop on which replicas can be looked after.",
        exit=_EXIT,
    ),
    Seam(
        id="embedding.replicas_end",
        target="sglang.srt.entrypoints.engine.Engine.shutdown",
        kind=Kind.BEFORE,
        feature=Feature.EMBEDDING,
        hook="arctic_sglang.embedding.workers:before_shutdown",
        params=("self",),
        roles=_MAIN,
        why="It kills every child process; replicas must not be started again then.",
        exit=_EXIT,
    ),
    _main("ports", "sglang.srt.server_args.PortArgs", "The sockets of a replica.",
          members=("init_new", "scheduler_input_ipc_name", "tokenizer_ipc_name")),
    _main("arguments", "sglang.srt.server_args.ServerArgs", "A replica's differ from the first instance's.",
          members=("override", "base_gpu_id", "gpu_id_step", "cuda_graph_config", "max_total_tokens")),
    _main("device_id", "sglang.srt.utils.common.maybe_reindex_device_id",
          "A process may be shown its own GPU alone.", params=("gpu_id",)),
    _main("socket", "sglang.srt.utils.network.get_zmq_socket", "SGLang's settings of a socket.",
          params=("context", "socket_type", "endpoint", "bind")),
    _main("send", "sglang.srt.managers.io_struct.sock_send", "Messages as SGLang's schedulers read them.",
          params=("socket", "obj", "flags")),
    _main("receive", "sglang.srt.managers.io_struct.async_sock_recv", "Messages as its schedulers write them.",
          params=("socket", "flags")),
    _call(
        "replica",
        "sglang.srt.managers.scheduler.Scheduler",
        "A replica is a scheduler in a process of ours, since SGLang's entry ends the server when it fails.",
        params=(
            "server_args", "port_args", "gpu_id", "tp_rank", "moe_ep_rank", "pp_rank", "attn_cp_rank", "moe_dp_rank",
            "dp_rank",
        ),
        members=("get_init_info", "run_event_loop"),
    ),
    _call(
        "replica_process",
        "sglang.srt.managers.scheduler.configure_scheduler_process",
        "Ties a replica's life to the server's, and binds it to cores as SGLang does.",
        params=(
            "server_args", "gpu_id", "tp_rank", "attn_cp_rank", "moe_dp_rank", "moe_ep_rank", "pp_rank", "dp_rank",
        ),
    ),
    _call(
        "replica_log",
        "sglang.srt.utils.common.configure_logger",
        "A replica's log lines say which one it is.",
        params=("server_args", "prefix"),
    ),
    _call(
        "replica_config",
        "sglang.srt.runtime_context.publish",
        "A scheduler reads its configuration from there.",
        params=("server_args", "role"),
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
        params=("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal"),
    ),
)  # fmt: skip
