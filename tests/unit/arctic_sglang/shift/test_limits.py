"""What is refused with Shift Parallelism, and that its flags fit together."""

import dataclasses
from types import SimpleNamespace

import pytest

from arctic_sglang.compat import vendor
from arctic_sglang.config import ArcticConfig
from arctic_sglang.shift.limits import _ONLY, QUANTIZATIONS, SWITCHED, checkpoint_refusals, heads_of, refusals
from arctic_sglang.shift.topology import Heads, Topology

GIVEN = {
    "device": "xpu", "nnodes": 2, "prefill_graph": "full", "fast_embedding_device": "cuda",
    "flashinfer_allreduce_fusion_backend": "auto",
    "pp_size": 2, "dp_size": 2, "ep_size": 2, "enable_dp_attention": True, "attn_cp_size": 2,
    "dcp_size": 2, "enable_lora": True, "quantization": "awq", "torchao_config": "int4wo-128",
    "speculative_algorithm": "NGRAM", "enable_two_batch_overlap": True, "enable_single_batch_overlap": True,
    "enable_pdmux": True, "disaggregation_mode": "prefill", "enable_hierarchical_cache": True,
    "enable_return_hidden_states": True, "enable_torch_compile": True,
    "moe_a2a_backend": "deepep", "moe_dp_size": 2, "moe_dense_tp_size": 1, "dwdp_size": 2, "enable_eplb": True,
    "elastic_ep_backend": "nixl", "kt_weight_path": "x",
    "enable_deterministic_inference": True, "enable_memory_saver": True, "custom_weight_loader": ["a.b"],
    "load_format": "sharded_state", "cpu_offload_gb": 8, "offload_group_size": 2, "post_capture_kv_sizing": True,
}  # fmt: skip
# What is no setting of SGLang's of that name.
FLAGS = {
    "prefill_graph": "--cuda-graph-backend-prefill",
    "fast_embedding_device": "--enable-fast-embedding on",
    "post_capture_kv_sizing": "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
}


def test_what_sglang_does_by_itself_is_fine():
    fields = {f.name: f.default for f in dataclasses.fields(vendor.ServerArgs)}
    assert set(_ONLY) - set(FLAGS) <= set(fields)
    for device, graph in (("cpu", "disabled"), ("cuda", "breakable")):
        usual = {"device": device, "prefill_graph": graph, "post_capture_kv_sizing": False}
        assert refusals(fields | usual) == []
    assert set(GIVEN) == set(_ONLY)


@pytest.mark.parametrize("name", GIVEN)
def test_each_refusal_names_its_flag_and_reason(name):
    (found,) = refusals({"device": "cpu", name: GIVEN[name]})
    flag = FLAGS.get(name, "--" + name.replace("_", "-"))
    assert found.startswith(f"{flag} {GIVEN[name]}: ")
    assert len(found) > len(f"{flag} {GIVEN[name]}: ") + 5


def test_weights_may_come_in_every_format_but_those_that_are_shards():
    from sglang.srt.server_args import LOAD_FORMAT_CHOICES

    refused = {name for name in LOAD_FORMAT_CHOICES if refusals({"load_format": name})}
    assert refused == {"sharded_state", "remote_instance"}


@pytest.mark.parametrize("name", [None, *QUANTIZATIONS])
def test_quantisation_of_rows_is_fine(name):
    assert refusals({"quantization": name}) == []
    assert checkpoint_refusals(name, None) == []
    assert checkpoint_refusals(name, {"quant_method": "fp8", "activation_scheme": "static"}) == []


@pytest.mark.parametrize(
    "name", ["mxfp8", "blockwise_int8", "modelopt_fp8", "modelopt_fp4", "w8a8_int8", "w8a8_fp8", "awq", "awq_marlin",
             "gptq", "gptq_marlin", "gguf", "bitsandbytes", "mxfp4", "w4afp8", "petit_nvfp4", "quark"],
)  # fmt: skip
def test_other_quantisation_is_refused_by_name(name):
    assert refusals({"quantization": name}) == [f"--quantization {name}: {SWITCHED}"]
    assert checkpoint_refusals(name, {}) == [f"a checkpoint in {name}: {SWITCHED}"]


def compressed(rows=True, **change):
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", **change}
    group = {"weights": weights, "input_activations": {"dynamic": True} if rows else None}
    return checkpoint_refusals("compressed-tensors", {"config_groups": {"group_0": group}})


def test_checkpoints_in_blocks_or_few_bits_are_refused():
    (found,) = checkpoint_refusals("fp8", {"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert found == f"a checkpoint with weight_block_size [128, 128]: {SWITCHED}"
    assert compressed() == compressed(strategy="tensor") == []
    assert "has 8-bit weights of type float, a scale for each block" in compressed(strategy="block")[0]
    assert (
        "has 4-bit weights of type int, a scale for each group"
        in compressed(num_bits=4, type="int", strategy="group")[0]
    )
    assert "has 8-bit weights of type int, a scale for each channel" in compressed(type="int")[0]
    assert "group_0 quantises weights alone" in compressed(rows=False)[0]


@pytest.mark.parametrize("algorithm", [None, "ARCTIC", "SUFFIX", "EAGLE", "EAGLE3", "NEXTN", "STANDALONE"])
def test_drafts_of_a_model_of_their_own_are_refused(algorithm):
    found = refusals({"device": "cpu", "speculative_algorithm": algorithm})
    assert bool(found) == (algorithm not in (None, "ARCTIC", "SUFFIX"))


def config(**change):
    given = {"architectures": ["LlamaForCausalLM"], "intermediate_size": 64, "num_attention_heads": 8,
             "num_key_value_heads": 4}  # fmt: skip
    return SimpleNamespace(**{**given, **change})


def test_models():
    topology = Topology(1, 4)
    assert heads_of(config(), topology) == Heads(topology, 8, 4)
    assert heads_of(config(num_key_value_heads=None), topology) == Heads(topology, 8, 8)
    with pytest.raises(ValueError, match="OPTForCausalLM is not supported; models are LlamaForCausalLM"):
        heads_of(config(architectures=["OPTForCausalLM"]), topology)
    with pytest.raises(ValueError, match="intermediate_size 66 does not divide over 4 ranks"):
        heads_of(config(intermediate_size=66), topology)
    experts = {"architectures": ["Qwen3MoeForCausalLM"], "intermediate_size": 66}
    assert heads_of(config(moe_intermediate_size=8, **experts), topology) == Heads(topology, 8, 4)
    with pytest.raises(ValueError, match="moe_intermediate_size 6 does not divide over 4 ranks"):
        heads_of(config(moe_intermediate_size=6, **experts), topology)
    with pytest.raises(ValueError, match="6 query heads do not divide over 4 ranks"):
        heads_of(config(num_attention_heads=6, num_key_value_heads=2), topology)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"ulysses_sequence_parallel_size": 0},
            "--ulysses-sequence-parallel-size is 0; it must be at least 1",
        ),
        ({"enable_shift_parallel": True}, "without --ulysses-sequence-parallel-size of 2 or more"),
        (
            {"shift_parallel_threshold": "8"},
            "--shift-parallel-threshold 8 was given without --enable-shift-parallel",
        ),
        ({"shift_parallel_threshold": "x"}, "must be a number of tokens"),
        (
            {"ulysses_sequence_parallel_size": 2, "shift_parallel_threshold": "8"},
            "--shift-parallel-threshold 8 was given without --enable-shift-parallel",
        ),
    ],
)
def test_flags_that_contradict_each_other(flags, told):
    with pytest.raises(ValueError, match=told):
        ArcticConfig(**flags)


def test_flags_that_fit():
    ArcticConfig(ulysses_sequence_parallel_size=2)
    ArcticConfig(ulysses_sequence_parallel_size=2, enable_shift_parallel=True, shift_parallel_threshold="0")
