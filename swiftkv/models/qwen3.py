"""Qwen3 (dense) with SwiftKV."""

from arctic_sglang.compat import vendor
from swiftkv.models.body import SwiftKVBody
from swiftkv.models.causal import SwiftKVCausal


class Qwen3SwiftKVModel(SwiftKVBody, vendor.Qwen3Model):
    """The decoder."""


class Qwen3SwiftKVForCausalLM(SwiftKVCausal, vendor.Qwen3ForCausalLM):
    """`architectures: ["Qwen3SwiftKVForCausalLM"]`."""

    body_type = Qwen3SwiftKVModel


EntryClass = Qwen3SwiftKVForCausalLM
