"""What a SwiftKV model is not served with, and why. Pure.

A row here is either wrong by nature (somebody wants rows that never go up) or has no test. Both stop the
start. docs/swiftkv.md says which of the tests of what is served have run on a GPU.
"""

from collections.abc import Mapping
from typing import Any

BACKENDS = ("fa3", "flashinfer", "triton", "torch_native")
QUANTIZATIONS = (None, "fp8")
KV_CACHE_DTYPES = ("auto", "bfloat16", "bf16", "fp8_e4m3")
SPECULATIONS = (None, "NGRAM", "SUFFIX", "ARCTIC")
# Servers whose own decode graphs have one row a request: this plugin's algorithms keep them for steps without a draft.
PLAIN_DECODES = (None, "SUFFIX", "ARCTIC")
PREFILL_GRAPHS = ("breakable", "full", "disabled")
# docs/LOG.md has what they were chosen by: launching half a model's kernels one by one costs more than a short
# prompt's upper half; one graph more costs little, but no less than stock's single one.
MIN_TOKENS = 384
MIN_TOKENS_WITHOUT_GRAPHS = 1024

# setting: (the value that is fine, flag, reason)
_ONLY: dict[str, tuple[Any, str, str]] = {
    "pp_size": (1, "--pp-size", "the cut is inside one pipeline stage"),
    "enable_dp_attention": (False, "--enable-dp-attention", "padded rows of other ranks would go up"),
    "attn_cp_size": (1, "--attn-cp-size", "a rank has no whole rows of the cut's state"),
    "dcp_size": (1, "--dcp-size", "not tried"),
    "enable_lora": (False, "--enable-lora", "adapters name projections that are not there above the cut"),
    "is_embedding": (False, "--is-embedding", "pooling wants rows that do not go up"),
    "enable_mis": (False, "--enable-mis", "it reads rows in the middle of a prompt"),
    "disaggregation_mode": ("null", "--disaggregation-mode", "not tried"),
    "enable_pdmux": (False, "--enable-pdmux", "it splits a prefill between layers"),
    "enable_two_batch_overlap": (False, "--enable-two-batch-overlap", "it splits a step in two"),
    "enable_hierarchical_cache": (False, "--enable-hierarchical-cache", "not tried"),
    "enable_lmcache": (False, "--enable-lmcache", "a store could hand a plain model's cache to this one"),
    "enable_flexkv": (False, "--enable-flexkv", "a store could hand a plain model's cache to this one"),
    "radix_cache_backend": (None, "--radix-cache-backend", "not tried"),
    "enable_hisparse": (False, "--enable-hisparse", "not tried"),
    "dllm_algorithm": (None, "--dllm-algorithm", "it has no last row"),
    "rl_on_policy_target": (None, "--rl-on-policy-target", "not tried"),
    "enable_deterministic_inference": (
        False,
        "--enable-deterministic-inference",
        "a last row's attention is a prefill's or decode's, by the tokens of the step",
    ),
    "torchao_config": ("", "--torchao-config", "not tried; --quantization fp8 quantises one in bf16"),
    "checkpoint_quantization": (
        None,
        "a checkpoint quantised as",
        "not tried; --quantization fp8 quantises one in bf16",
    ),
    "quantization_param_path": (None, "--quantization-param-path", "its scales are per decoder layer"),
}


def refusals(settings: Mapping[str, Any]) -> list[str]:
    """Why a SwiftKV model cannot be served with these settings; empty if it can.

    Args:
        settings: SGLang's server arguments as it resolved them, by name, and besides `prefill_backend` and
            `decode_backend` (attention), `prefill_graph` (the prefill graphs' backend) and
            `checkpoint_quantization` (how the checkpoint comes quantised). What is not in there is taken to
            be fine.
    """
    found = [
        f"{flag} {settings[name]!r}: {reason}"
        for name, (fine, flag, reason) in _ONLY.items()
        if settings.get(name) not in (fine, None)
    ]
    choices = {
        "prefill_backend": ("--attention-backend", BACKENDS),
        "decode_backend": ("--attention-backend", BACKENDS),
        "quantization": ("--quantization", QUANTIZATIONS),
        "kv_cache_dtype": ("--kv-cache-dtype", KV_CACHE_DTYPES),
        "speculative_algorithm": ("--speculative-algorithm", SPECULATIONS),
        "prefill_graph": ("--cuda-graph-backend-prefill", PREFILL_GRAPHS),
    }
    for name, (flag, fine) in choices.items():
        if name in settings and settings[name] not in fine:
            named = ", ".join(str(value) for value in fine if value is not None)
            text = f"{flag} {settings[name]}: served with {named}" + (" or without" if None in fine else "")
            if text not in found:
                found.append(text)
    return found


def tail_graphs(decode_graph: str, prefill_graph: str, speculative_algorithm: str | None) -> bool:
    """Whether the rows that go up after a prefill have CUDA graphs.

    They are made of decode's, one row a request; a server that speculates by NGRAM has graphs of verify instead.

    Args:
        decode_graph: the decode graphs' backend.
        prefill_graph: the prefill graphs' backend.
        speculative_algorithm: the server's.
    """
    return decode_graph == "full" and prefill_graph != "full" and speculative_algorithm in PLAIN_DECODES


def min_tokens(given: int | None, prefill_graph: str, graphs: bool) -> int:
    """The smallest prefill step that stops at the cut.

    A full prefill graph hands the outer model a step without its padding, which then cannot tell what the
    graph did. So with it every prefill stops at the cut.

    Args:
        given: the flag.
        prefill_graph: the prefill graphs' backend.
        graphs: what `tail_graphs` says.

    Raises:
        ValueError: the user wants something else with full graphs.
    """
    if prefill_graph != "full":
        default = MIN_TOKENS if graphs else MIN_TOKENS_WITHOUT_GRAPHS
        return default if given is None else given
    if given:
        msg = f"--swiftkv-min-tokens {given} cannot be kept with --cuda-graph-backend-prefill full; leave one out"
        raise ValueError(msg)
    return 0
