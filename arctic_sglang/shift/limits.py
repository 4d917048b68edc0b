"""What Shift Parallelism does not go with, and why. Pure.

A row here is either wrong by nature or has no test. Both stop the start.
"""

from collections.abc import Mapping
from typing import Any

from arctic_sglang.shift.topology import Heads, Topology, check_divides

# architecture: the size of its MLP that ranks share out, as config.json has it
ARCHITECTURES = {
    "LlamaForCausalLM": "intermediate_size",
    "MistralForCausalLM": "intermediate_size",
    "MistralModel": "intermediate_size",  # embeddings alone
    "Qwen2ForCausalLM": "intermediate_size",
    "Qwen3ForCausalLM": "intermediate_size",
    "Qwen3MoeForCausalLM": "moe_intermediate_size",
    "LlamaSwiftKVForCausalLM": "intermediate_size",
    "Qwen2SwiftKVForCausalLM": "intermediate_size",
    "Qwen3SwiftKVForCausalLM": "intermediate_size",
}

QUANTIZATIONS = ("fp8", "compressed-tensors")
# Then a part of them is rows or columns of them, with its own scales or with all of them.
SWITCHED = "weights may be plain, or in fp8 with one scale for a weight or one for each of its rows"

# setting: (the values that are fine, flag, reason)
_ONLY: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "device": (("cpu", "cuda"), "--device", "only CPUs and NVIDIA GPUs were tried"),
    "nnodes": ((1,), "--nnodes", "the GPUs of a group write to each other's memory, which one host has"),
    "pp_size": ((1,), "--pp-size", "a stage would hand on its share of the tokens"),
    "dp_size": ((1,), "--dp-size", "not tried"),
    "ep_size": ((1,), "--ep-size", "not tried: all ranks have a part of every expert"),
    "moe_a2a_backend": (("none",), "--moe-a2a-backend", "it sends tokens to experts, which all ranks share out here"),
    "moe_dp_size": ((1,), "--moe-dp-size", "all ranks compute with all tokens' experts"),
    "moe_dense_tp_size": ((None,), "--moe-dense-tp-size", "a layer's ranks are those of the step's mode"),
    "dwdp_size": ((1,), "--dwdp-size", "it shares out requests, and here tokens are"),
    "enable_eplb": ((False,), "--enable-eplb", "all ranks have a part of every expert"),
    "elastic_ep_backend": ((None,), "--elastic-ep-backend", "all ranks have a part of every expert"),
    "kt_weight_path": ((None,), "--kt-weight-path", "not tried"),
    "enable_dp_attention": ((False,), "--enable-dp-attention", "it shares out requests, and here tokens are"),
    "attn_cp_size": ((1,), "--attn-cp-size", "it shares out tokens too, and keeps another cache"),
    "dcp_size": ((1,), "--dcp-size", "it shares out the cache by tokens, and here it is by heads"),
    "enable_lora": ((False, None), "--enable-lora", "adapters go by token, and a rank has a share of them"),
    "quantization": ((None, *QUANTIZATIONS), "--quantization", SWITCHED),
    "torchao_config": (("", None), "--torchao-config", "it changes weights after they are loaded"),
    "speculative_algorithm": (
        (None, "ARCTIC", "SUFFIX"), "--speculative-algorithm",
        "ARCTIC and SUFFIX alone: others have a draft model, whose layers are not switched, or were not tried",
    ),
    "flashinfer_allreduce_fusion_backend": (
        (None,), "--flashinfer-allreduce-fusion-backend", "it leaves sums of one layer to the norm of the next",
    ),
    "enable_two_batch_overlap": ((False,), "--enable-two-batch-overlap", "it splits a step in two"),
    "enable_single_batch_overlap": ((False,), "--enable-single-batch-overlap", "not tried"),
    "enable_pdmux": ((False,), "--enable-pdmux", "it splits a prefill between layers"),
    "disaggregation_mode": (("null",), "--disaggregation-mode", "not tried"),
    "enable_hierarchical_cache": ((False,), "--enable-hierarchical-cache", "not tried"),
    "enable_return_hidden_states": ((False,), "--enable-return-hidden-states", "not tried"),
    "enable_deterministic_inference": ((False,), "--enable-deterministic-inference", "modes round differently"),
    "enable_memory_saver": ((False,), "--enable-memory-saver", "not tried"),
    "load_format": (
        ("auto", "pt", "safetensors", "npcache", "dummy", "presharded", "gguf", "bitsandbytes", "mistral", "layered",
         "flash_rl", "remote", "fastsafetensors", "private", "runai_streamer"),
        "--load-format", "it reads the shards of as many ranks as there are, and a rank here begins with larger ones",
    ),
    "cpu_offload_gb": ((0,), "--cpu-offload-gb", "both modes have the weights on the GPU"),
    "offload_group_size": ((-1, 0, None), "--offload-group-size", "both modes have the weights on the GPU"),
    "post_capture_kv_sizing": (
        (False,), "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
        "not tried, and it wants prefill graphs as large as a step, which ranks make larger",
    ),
    "custom_weight_loader": ((None, []), "--custom-weight-loader", "it may write to one mode's part of the weights"),
    "prefill_graph": (
        ("breakable", "disabled"), "--cuda-graph-backend-prefill",
        "rows of a step's tokens are taken to be all of them; leave it out or take disabled",
    ),
    "fast_embedding_device": (
        (None, "cpu"), "--enable-fast-embedding on",
        "its steps run beside others, and ranks would write to each other's memory for both at once",
    ),
    "enable_torch_compile": ((False,), "--enable-torch-compile", "a step's mode is chosen outside of the graph"),
}  # fmt: skip


def refusals(settings: Mapping[str, Any]) -> list[str]:
    """Why a server with these settings cannot use Shift Parallelism; empty if it can.

    Args:
        settings: SGLang's server arguments by name, and besides `prefill_graph` (the prefill graphs' backend),
            `post_capture_kv_sizing` (whether the KV cache is sized after capture) and `fast_embedding_device` (where
            the vectorised road computes; None: it is off). What is not in there is
            taken to be fine.
    """
    return [
        f"{flag} {settings[name]}: {reason}"
        for name, (fine, flag, reason) in _ONLY.items()
        if name in settings and settings[name] not in fine
    ]


def checkpoint_refusals(quantization: str | None, config: Mapping[str, Any] | None) -> list[str]:
    """Why a checkpoint's weights cannot be switched; empty if they can.

    Args:
        quantization: as SGLang names it; None: they are not quantised.
        config: `quantization_config` of config.json; None: it has none.
    """
    found = []
    if quantization not in (None, *QUANTIZATIONS):
        found.append(f"a checkpoint in {quantization}")
    config = config or {}
    if config.get("weight_block_size"):
        found.append(f"a checkpoint with weight_block_size {config['weight_block_size']}")
    for name, group in config.get("config_groups", {}).items():
        weights = group.get("weights") or {}
        kind, bits, scales = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
        if (kind, bits) != ("float", 8) or scales not in ("tensor", "channel"):
            found.append(
                f"a checkpoint whose {name} has {bits}-bit weights of type {kind}, a scale for each {scales}"
            )
        elif not group.get("input_activations"):
            found.append(f"a checkpoint whose {name} quantises weights alone")
    return [f"{text}: {SWITCHED}" for text in found]


def heads_of(config: Any, topology: Topology) -> Heads:
    """How a model's attention heads are shared out.

    Args:
        config: transformers' config of the model.
        topology: the ranks.

    Raises:
        ValueError: the model is of a kind that is not switched, or its sizes do not divide.
    """
    name = (config.architectures or ["?"])[0]
    if name not in ARCHITECTURES:
        msg = (
            f"--ulysses-sequence-parallel-size {topology.sp}: {name} is not supported; models are "
            f"{', '.join(ARCHITECTURES)}"
        )
        raise ValueError(msg)
    size = ARCHITECTURES[name]
    check_divides(size, getattr(config, size), topology)
    kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Heads(topology, config.num_attention_heads, kv)
