"""The only imports of SGLang's internals, each done when its name is first used.

`vendor.Pooler` imports `sglang.srt.layers.pooler` then, and not before: the light processes of a server
must not pay for the heavy modules of the others.
"""

import importlib
from typing import Any

_NAMES = {
    "alloc_for_spec_decode": "sglang.srt.mem_cache.allocation",
    "BaseSpecWorker": "sglang.srt.speculative.base_spec_worker",
    "build_grammar_vocab_mask": "sglang.srt.speculative.spec_utils",
    "CaptureHiddenMode": "sglang.srt.model_executor.forward_batch_info",
    "compute_spec_v2_logprobs": "sglang.srt.layers.logprob_processor",
    "CustomSpecAlgo": "sglang.srt.speculative.spec_registry",
    "DecodeCudaGraphRunner": "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
    "DFlashVerifyInput": "sglang.srt.speculative.dflash_info",
    "FutureMap": "sglang.srt.managers.overlap_utils",
    "get_alloc_reserve_per_decode": "sglang.srt.mem_cache.allocation_sizing",
    "get_context": "sglang.srt.runtime_context",
    "get_spec": "sglang.srt.runtime_context",
    "get_tp_group": "sglang.srt.distributed.parallel_state",
    "graph_capture": "sglang.srt.distributed.parallel_state",
    "GraphSharedOutput": "sglang.srt.model_executor.graph_shared_output",
    "GrammarTree": "sglang.srt.speculative.spec_utils",
    "mambaish_config": "sglang.srt.configs.hybrid_arch",
    "SpecInput": "sglang.srt.speculative.spec_info",
    "SpecInputType": "sglang.srt.speculative.spec_info",
    "SpeculativeAlgorithm": "sglang.srt.speculative.spec_info",
    "add_prefix": "sglang.srt.utils.common",
    "APIServerReqTimeStats": "sglang.srt.observability.req_time_stats",
    "app": "sglang.srt.entrypoints.http_server",
    "Arg": "sglang.srt.arg_groups.arg_utils",
    "async_sock_recv": "sglang.srt.managers.io_struct",
    "ColumnParallelLinear": "sglang.srt.layers.linear",
    "AttentionBackend": "sglang.srt.layers.attention.base_attn_backend",
    "BertEncoder": "sglang.srt.models.bert",
    "flash_attn_varlen_func": "sglang.kernels.ops.attention.flash_attention",
    "ForwardBatch": "sglang.srt.model_executor.forward_batch_info",
    "RadixAttention": "sglang.srt.layers.radix_attention",
    "CompressedTensorsLinearMethod": "sglang.srt.layers.quantization.compressed_tensors.compressed_tensors",
    "CompressedTensorsW8A8Fp8": "sglang.srt.layers.quantization.compressed_tensors.schemes.compressed_tensors_w8a8_fp8",
    "configure_logger": "sglang.srt.utils.common",
    "configure_scheduler_process": "sglang.srt.managers.scheduler",
    "CpuDeviceMixin": "sglang.srt.platforms.cpu",
    "EmbeddingPoolerOutput": "sglang.srt.layers.pooler",
    "EmbeddingReqInput": "sglang.srt.managers.io_struct",
    "force_eager_attention": "sglang.srt.layers.radix_attention",
    "forward_context": "sglang.srt.model_executor.forward_context",
    "ForwardContext": "sglang.srt.model_executor.forward_context",
    "FusedMoE": "sglang.srt.layers.moe.fused_moe_triton.layer",
    "ForwardMode": "sglang.srt.model_executor.forward_batch_info",
    "Fp8LinearMethod": "sglang.srt.layers.quantization.fp8",
    "get_attn_backend": "sglang.srt.model_executor.forward_context",
    "get_forward": "sglang.srt.runtime_context",
    "get_parallel": "sglang.srt.runtime_context",
    "get_pp_group": "sglang.srt.distributed.parallel_state",
    "get_server_args": "sglang.srt.runtime_context",
    "get_zmq_socket": "sglang.srt.utils.network",
    "get_token_to_kv_pool": "sglang.srt.model_executor.forward_context",
    "HookRegistry": "sglang.srt.plugins.hook_registry",
    "HookSource": "sglang.srt.plugins.hook_registry",
    "HookType": "sglang.srt.plugins.hook_registry",
    "KVWriteLoc": "sglang.srt.mem_cache.memory_pool",
    "LlamaForCausalLM": "sglang.srt.models.llama",
    "LlamaModel": "sglang.srt.models.llama",
    "load_plugins": "sglang.srt.plugins",
    "LogitsProcessor": "sglang.srt.layers.logits_processor",
    "LogitsProcessorOutput": "sglang.srt.layers.logits_processor",
    "maybe_reindex_device_id": "sglang.srt.utils.common",
    "MergedColumnParallelLinear": "sglang.srt.layers.linear",
    "MHATokenToKVPool": "sglang.srt.mem_cache.memory_pool",
    "MLATokenToKVPool": "sglang.srt.mem_cache.memory_pool",
    "ModelRegistry": "sglang.srt.models.registry",
    "NS": "sglang.srt.arg_groups.arg_utils",
    "ParallelLMHead": "sglang.srt.layers.vocab_parallel_embedding",
    "PlatformEnum": "sglang.srt.platforms.device_mixin",
    "Pooler": "sglang.srt.layers.pooler",
    "QKVParallelLinear": "sglang.srt.layers.linear",
    "RowParallelLinear": "sglang.srt.layers.linear",
    "PoolingType": "sglang.srt.layers.pooler",
    "PortArgs": "sglang.srt.server_args",
    "publish": "sglang.srt.runtime_context",
    "ReqState": "sglang.srt.managers.tokenizer_manager",
    "resolve_embedding_model_spec": "sglang.srt.configs.embedding_model_spec",
    "Qwen2ForCausalLM": "sglang.srt.models.qwen2",
    "Qwen2Model": "sglang.srt.models.qwen2",
    "Qwen3ForCausalLM": "sglang.srt.models.qwen3",
    "Qwen3Model": "sglang.srt.models.qwen3",
    "RMSNorm": "sglang.srt.layers.layernorm",
    "Scheduler": "sglang.srt.managers.scheduler",
    "ServerArgs": "sglang.srt.server_args",
    "ShapeKey": "sglang.srt.model_executor.runner.shape_key",
    "sock_send": "sglang.srt.managers.io_struct",
    "SRTPlatform": "sglang.srt.platforms.interface",
    "TypeBasedDispatcher": "sglang.utils",
    "UnquantizedLinearMethod": "sglang.srt.layers.quantization.unquant",
    "TokenToKVPoolAllocator": "sglang.srt.mem_cache.allocator",
}


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name)
    if module is None:
        msg = f"arctic_sglang.compat.vendor has no {name}; add it to the table of imports"
        raise AttributeError(msg)
    return getattr(importlib.import_module(module), name)


def get_spec_algorithm(name: str) -> Any:
    """A plugin's speculative algorithm by name, or None. SGLang's own are not found here."""
    return importlib.import_module("sglang.srt.speculative.spec_registry").get_spec(name)


def engine_class() -> type:
    """`sglang.Engine`, public."""
    return importlib.import_module("sglang").Engine


def torch_profiler_cpu() -> Any:
    """torch's profiler activity for the CPU."""
    from torch.profiler import ProfilerActivity

    return ProfilerActivity.CPU


def accelerator() -> str | None:
    """Name of the accelerator that torch sees ("cuda", "xpu", ...), or None. Imports torch."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    return None if device is None or device.type == "cpu" else device.type


def set_cpu_threads(count: int) -> None:
    """Threads that torch computes with in this process."""
    import torch

    torch.set_num_threads(count)


def device_count() -> int:
    """CUDA devices that are visible; 0 without any."""
    import torch

    return torch.cuda.device_count()


def device_name(kind: str) -> str:
    """What computes: the name of the first GPU, or the processor's architecture.

    Args:
        kind: "cuda" or "cpu".
    """
    import platform

    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else platform.machine()


def versions() -> dict[str, str]:
    """Of the packages that a step's time depends on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("arctic-sglang", "sglang", "torch")}


def setproctitle(title: str) -> None:
    """Name this process for `ps`, with the library that SGLang uses."""
    from setproctitle import setproctitle

    setproctitle(title)


def cuda_devices() -> list[str]:
    """One line per CUDA device: name and memory."""
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}" for p in found]
