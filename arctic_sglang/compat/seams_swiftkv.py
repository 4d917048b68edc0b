"""Every touch of SGLang's internals by SwiftKV models."""

from arctic_sglang.compat.seam import Kind, Role, Seam
from arctic_sglang.features import Feature

_EXIT = "SwiftKV models in SGLang"


def _row(
    name: str, target: str, why: str, *, kind: Kind = Kind.CALL, params: tuple[str, ...] = (),
    members: tuple[str, ...] = (), hook: str = "",
) -> Seam:  # fmt: skip
    return Seam(
        id=f"swiftkv.{name}", target=f"sglang.srt.{target}", kind=kind, feature=Feature.SWIFTKV, why=why,
        hook=hook, params=params, members=members, roles=frozenset({Role.SCHEDULER}), exit=_EXIT,
    )  # fmt: skip


ROWS: tuple[Seam, ...] = (
    _row(
        "registry", "models.registry.ModelRegistry", "Where SGLang looks an architecture up.",
        kind=Kind.REGISTER, hook="swiftkv.models:register",
    ),
    _row(
        "unfinished", "model_executor.forward_batch_info.ForwardBatch.init_new",
        "Whether a prefill step ends no prompt is known to the scheduler alone.",
        kind=Kind.AFTER, hook="swiftkv.models.tail:after_init_new", params=("cls", "batch"),
    ),
    _row("llama", "models.llama.LlamaForCausalLM", "The outer model: loading, head.",
         kind=Kind.SUBCLASS, members=("forward", "load_weights", "end_layer", "lm_head", "logits_processor")),
    _row("llama_body", "models.llama.LlamaModel", "The decoder whose layers are used.",
         kind=Kind.SUBCLASS, members=("forward", "layers", "norm", "embed_tokens")),
    _row("qwen2", "models.qwen2.Qwen2ForCausalLM", "The outer model: loading, head.",
         kind=Kind.SUBCLASS, members=("forward", "load_weights", "end_layer", "lm_head", "logits_processor")),
    _row("qwen2_body", "models.qwen2.Qwen2Model", "The decoder whose layers are used.",
         kind=Kind.SUBCLASS, members=("forward", "layers", "norm", "embed_tokens")),
    _row("qwen3", "models.qwen3.Qwen3ForCausalLM", "The outer model: loading, head.",
         kind=Kind.SUBCLASS, members=("forward", "load_weights", "end_layer", "lm_head", "logits_processor")),
    _row("qwen3_body", "models.qwen3.Qwen3Model", "The decoder whose layers are used.", kind=Kind.SUBCLASS),
    _row("llama_attention", "models.llama.LlamaAttention", "Sizes, rotation and output projection of a layer.",
         members=("head_dim", "num_heads", "num_kv_heads", "total_num_heads", "total_num_kv_heads", "o_proj",
                  "rotary_emb", "attn")),
    _row("qwen2_attention", "models.qwen2.Qwen2Attention", "Sizes, rotation and output projection of a layer.",
         members=("head_dim", "num_heads", "num_kv_heads", "total_num_heads", "total_num_kv_heads", "o_proj",
                  "rotary_emb", "attn")),
    _row("qwen3_attention", "models.qwen3.Qwen3Attention", "Sizes, rotation and output projection of a layer.",
         members=("head_dim", "num_heads", "num_kv_heads", "total_num_heads", "total_num_kv_heads", "o_proj",
                  "rotary_emb", "attn", "q_norm")),
    _row("column", "layers.linear.ColumnParallelLinear", "Queries of an upper layer.",
         params=("input_size", "output_size", "bias", "quant_config", "prefix")),
    _row("merged", "layers.linear.MergedColumnParallelLinear", "Keys and values of all upper layers.",
         params=("input_size", "output_sizes", "bias", "quant_config", "prefix", "use_presharded_weights")),
    _row("head", "layers.vocab_parallel_embedding.ParallelLMHead", "The head of an untied model.",
         params=("num_embeddings", "embedding_dim", "quant_config", "prefix")),
    _row("norm", "layers.layernorm.RMSNorm", "The norm at the cut.", params=("hidden_size", "eps")),
    _row("rotary", "layers.rotary_embedding.base.RotaryEmbedding", "The table that keys are rotated with.",
         members=("cos_sin_cache", "is_neox_style")),
    _row("logits", "layers.logits_processor.LogitsProcessor", "Reads logits of the rows that went up.",
         params=("config",), members=("forward",)),
    _row("logits_output", "layers.logits_processor.LogitsProcessorOutput", "What a step with no rows returns.",
         members=("next_token_logits",)),
    _row("batch", "model_executor.forward_batch_info.ForwardBatch", "The step, and the step of its last rows.",
         members=("forward_mode", "batch_size", "input_ids", "positions", "out_cache_loc", "extend_seq_lens",
                  "extend_prefix_lens", "extend_start_loc", "extend_seq_lens_cpu", "extend_prefix_lens_cpu",
                  "extend_logprob_start_lens_cpu", "extend_num_tokens", "return_logprob", "capture_hidden_mode",
                  "sampling_info", "spec_info", "input_embeds", "num_token_non_padded_cpu",
                  "forward_metadata_ready", "_attn_output")),
    _row("mode", "model_executor.forward_batch_info.ForwardMode", "What a step does.",
         members=("DECODE", "EXTEND", "is_extend_without_speculative", "is_decode_or_idle")),
    _row("hidden_mode", "model_executor.forward_batch_info.CaptureHiddenMode", "Whose hidden states are wanted.",
         members=("need_capture", "is_full")),
    _row("schedule_batch", "managers.schedule_batch.ScheduleBatch", "The request whose prompt goes on.",
         members=("chunked_req", "reqs")),
    _row("backend", "model_executor.forward_context.get_attn_backend", "Plans attention for the last rows."),
    _row("pool", "model_executor.forward_context.get_token_to_kv_pool", "The KV cache."),
    _row("eager", "layers.radix_attention.force_eager_attention",
         "The last rows' attention is not of the prefill graph around it."),
    _row("attention", "layers.radix_attention.RadixAttention", "Attention of an upper layer.",
         members=("forward", "layer_id", "k_scale", "v_scale")),
    _row("write_loc", "mem_cache.memory_pool.KVWriteLoc", "Where keys and values go.", params=()),
    _row("rows", "mem_cache.memory_pool.MHATokenToKVPool", "The pool whose rows the kernel writes.",
         members=("set_kv_buffer", "k_data_ptrs", "v_data_ptrs", "k_buffer", "use_hnd", "kv_cache_layout",
                  "is_quantized_kv_cache")),
    _row("parallel", "runtime_context.get_parallel", "This rank and how many there are."),
    _row("args", "runtime_context.get_server_args", "The flags."),
    _row("group", "distributed.parallel_state.get_pp_group", "SGLang's loaders ask the model for it."),
    _row("prefix", "utils.common.add_prefix", "Names of layers, as quantisation looks them up.",
         params=("name", "prefix")),
    _row("resolved", "server_args.ServerArgs", "What SGLang made of the flags, before anything is loaded.",
         members=("override", "get_model_config", "get_attention_backends", "cuda_graph_config", "pp_size",
                  "enable_dp_attention", "enable_lora", "disaggregation_mode", "speculative_algorithm")),
)  # fmt: skip
