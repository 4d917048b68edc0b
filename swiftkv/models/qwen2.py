"""Qwen2 and Qwen2.5 with SwiftKV."""

from arctic_sglang.compat import vendor
from swiftkv.models.body import SwiftKVBody
from swiftkv.models.causal import SwiftKVCausal


class Qwen2SwiftKVModel(SwiftKVBody, vendor.Qwen2Model):
    """The decoder."""

    query_bias = True


class Qwen2SwiftKVForCausalLM(SwiftKVCausal, vendor.Qwen2ForCausalLM):
    """`architectures: ["Qwen2SwiftKVForCausalLM"]`."""

    body_type = Qwen2SwiftKVModel


EntryClass = Qwen2SwiftKVForCausalLM
