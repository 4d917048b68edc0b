"""What a SwiftKV model is not served with."""

import re

import pytest

from arctic_sglang.compat import source
from swiftkv.limits import _ONLY, min_tokens, refusals, tail_graphs

FINE = {
    "pp_size": 1, "enable_dp_attention": False, "enable_lora": None, "is_embedding": False,
    "disaggregation_mode": "null", "prefill_backend": "fa3", "decode_backend": "flashinfer",
    "quantization": "fp8", "kv_cache_dtype": "auto", "speculative_algorithm": None, "prefill_graph": "breakable",
    "tp_size": 4, "anything_else": "at all", "torchao_config": "", "radix_cache_backend": None,
}  # fmt: skip


def test_what_is_served():
    assert refusals(FINE) == []
    assert refusals({}) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("pp_size", 2, "--pp-size 2"),
        ("enable_dp_attention", True, "--enable-dp-attention"),
        ("enable_lora", True, "--enable-lora"),
        ("is_embedding", True, "--is-embedding"),
        ("enable_lmcache", True, "--enable-lmcache"),
        ("enable_flexkv", True, "--enable-flexkv"),
        ("radix_cache_backend", "flexkv", "--radix-cache-backend 'flexkv'"),
        ("torchao_config", "int4wo-128", "--torchao-config 'int4wo-128'"),
        ("enable_deterministic_inference", True, "--enable-deterministic-inference"),
        ("disaggregation_mode", "prefill", "--disaggregation-mode 'prefill'"),
        ("prefill_backend", "trtllm_mha", "served with fa3, flashinfer, triton, torch_native"),
        ("decode_backend", "fa4", "--attention-backend fa4"),
        ("quantization", "awq", "--quantization awq: served with fp8.* or without"),
        ("checkpoint_quantization", "compressed-tensors", "a checkpoint quantised as 'compressed-tensors'"),
        ("kv_cache_dtype", "fp4_e2m1", "--kv-cache-dtype fp4_e2m1"),
        (
            "speculative_algorithm",
            "EAGLE3",
            "--speculative-algorithm EAGLE3: served with NGRAM, SUFFIX, ARCTIC or without",
        ),
        ("prefill_graph", "tc_piecewise", "--cuda-graph-backend-prefill tc_piecewise"),
    ],
)
def test_each_refusal_names_the_flag_and_what_is_given(name, value, says):
    found = refusals({**FINE, name: value})
    assert len(found) == 1
    assert re.search(says, found[0])


def test_every_setting_is_one_of_sglangs():
    """What it calls otherwise some day would be let through: a setting that is not there is taken to be fine."""
    root = source.installed_root()
    args = source.find(root, "sglang.srt.server_args.ServerArgs")
    for name in _ONLY.keys() - {"checkpoint_quantization"}:
        source.find_member(root, args, name, name)


def test_one_backend_for_both_phases_is_said_once():
    assert len(refusals({**FINE, "prefill_backend": "fa4", "decode_backend": "fa4"})) == 1


def test_min_tokens():
    assert min_tokens(None, "breakable", True) == 384
    assert min_tokens(None, "breakable", False) == 1024
    assert min_tokens(8, "breakable", False) == 8
    assert min_tokens(0, "breakable", True) == 0
    assert min_tokens(None, "full", False) == 0
    assert min_tokens(0, "full", False) == 0
    with pytest.raises(ValueError, match=r"--swiftkv-min-tokens 64 cannot be kept"):
        min_tokens(64, "full", False)


def test_tail_graphs():
    assert tail_graphs("full", "breakable", None)
    assert tail_graphs("full", "disabled", None)
    assert tail_graphs("full", "breakable", "SUFFIX")
    assert tail_graphs("full", "breakable", "ARCTIC")
    assert not tail_graphs("full", "breakable", "NGRAM")
    assert not tail_graphs("full", "full", None)
    assert not tail_graphs("breakable", "breakable", None)
    assert not tail_graphs("disabled", "breakable", None)
