"""Llama with SwiftKV."""

from arctic_sglang.compat import vendor
from swiftkv.models.body import SwiftKVBody
from swiftkv.models.causal import SwiftKVCausal


class LlamaSwiftKVModel(SwiftKVBody, vendor.LlamaModel):
    """The decoder."""


class LlamaSwiftKVForCausalLM(SwiftKVCausal, vendor.LlamaForCausalLM):
    """`architectures: ["LlamaSwiftKVForCausalLM"]`, as in Snowflake's checkpoints."""

    body_type = LlamaSwiftKVModel


EntryClass = LlamaSwiftKVForCausalLM
