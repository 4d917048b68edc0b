"""SwiftKV on top of transformers' own Llama, Qwen2 and Qwen3.

Every token goes through every layer here, so this is neither fast nor subtle, and that is its use: the
upper layers' keys and values depend on the cut's state alone, so what a served model computes for a few
rows is what this computes for all.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from swiftkv.config import LlamaSwiftKVConfig, Qwen2SwiftKVConfig, Qwen3SwiftKVConfig
from swiftkv.layout import Layout

KeysValues = tuple[torch.Tensor, torch.Tensor]
BASE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")


class Group:
    """The keys and values of one group of upper layers; the group's first layer makes them in its forward.

    They are made there, and not before, so that wrappers that gather a layer's weights for its forward (FSDP)
    have them gathered. A plain object, because such wrappers copy the tuples and dicts among a layer's
    arguments.

    Attributes:
        states: the normalised cut state, shape [batch, tokens, hidden].
        pair: keys and values of all tokens so far, each of shape [batch, KV heads, tokens, head_dim].
    """

    __slots__ = ("pair", "states")

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states
        self.pair: KeysValues | None = None


class UpperAttention(nn.Module):
    """Attention of an upper layer: queries of its own, keys and values from the cut.

    Stands before a transformers attention class, which provides `o_proj` and the sizes. The base's own
    projections stay only where a config says `keep_base_projections`, for distillation.
    """

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.owns = layer_idx in Layout.of(config).owners
        for kind in ("q", "k", "v") if self.owns else ("q",):
            base = getattr(self, f"{kind}_proj")
            self.add_module(
                f"{kind}_proj_swiftkv",
                nn.Linear(base.in_features, base.out_features, bias=base.bias is not None),
            )
            if hasattr(self, f"{kind}_norm"):
                norm = type(getattr(self, f"{kind}_norm"))
                self.add_module(f"{kind}_norm_swiftkv", norm(self.head_dim, eps=config.rms_norm_eps))
        if not getattr(config, "keep_base_projections", False):
            for name in BASE_PROJECTIONS:
                if hasattr(self, name):
                    delattr(self, name)

    def heads(self, kind: str, states: torch.Tensor) -> torch.Tensor:
        """Queries ("q"), keys ("k") or values ("v"), shape [batch, heads, tokens, head_dim]."""
        projected = getattr(self, f"{kind}_proj_swiftkv")(states)
        projected = projected.view(*states.shape[:-1], -1, self.head_dim)
        norm = getattr(self, f"{kind}_norm_swiftkv", None)
        return (projected if norm is None else norm(projected)).transpose(1, 2)

    def keys_values(self, states: torch.Tensor, rotation: KeysValues, cache: Cache | None) -> KeysValues:
        """Keys and values of this layer's group for all tokens so far.

        Args:
            states: the normalised cut state, shape [batch, tokens, hidden].
            rotation: cosines and sines of the tokens' positions.
            cache: where they are kept, if they are.
        """
        values = self.heads("v", states)
        # transformers rotates queries and keys together
        keys, _ = llama.apply_rotary_pos_emb(self.heads("k", states), values, *rotation)
        return (keys, values) if cache is None else cache.update(keys, values, self.layer_idx)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends to the keys and values of `group`; without it, as the base would, to this layer's own."""
        group = kwargs.pop("group", None)
        if group is None:
            return super().forward(hidden_states, **kwargs)
        rotation, cache = kwargs.pop("position_embeddings"), kwargs.pop("past_key_values", None)
        if self.owns:
            group.pair = self.keys_values(group.states, rotation, cache)
        queries = self.heads("q", hidden_states)
        queries, _ = llama.apply_rotary_pos_emb(queries, queries, *rotation)
        mask = kwargs.pop("attention_mask")
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, llama.eager_attention_forward
        )
        output, weights = attend(
            self, queries, *group.pair, mask, dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling, **kwargs,
        )  # fmt: skip
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class LlamaUpperAttention(UpperAttention, llama.LlamaAttention):
    """Llama's."""


class Qwen2UpperAttention(UpperAttention, qwen2.Qwen2Attention):
    """Qwen2's."""


class Qwen3UpperAttention(UpperAttention, qwen3.Qwen3Attention):
    """Qwen3's, with a norm for each head of queries and keys."""


class SwiftKVModel(PreTrainedModel):
    """The decoder. Stands before a transformers model class, which makes the layers.

    Raises:
        ValueError: the config has no upper half, or a sliding window.
    """

    upper_attention: type[UpperAttention]
    norm_type: type[nn.Module]
    runs_as_base = False  # True: forward is the base's; needs a config with `keep_base_projections`

    def __init__(self, config: Any) -> None:
        self.layout = None  # until the base's constructor is done
        super().__init__(config)
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            msg = "SwiftKV models with a sliding window are not supported; set use_sliding_window to false"
            raise ValueError(msg)
        self.layout = Layout.of(config)
        for index in self.layout.upper:
            self.layers[index].self_attn = self.upper_attention(config, index)
        self.norm_swiftkv = self.norm_type(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As transformers' models; hidden_states, where asked for, are those that enter each layer."""
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        shape = self.shape(hidden, attention_mask, position_ids, past_key_values)
        hidden = self.lower(hidden, **shape, **kwargs)
        above = self.base_upper if self.runs_as_base else self.upper
        _, hidden = above(hidden, **shape, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)

    def shape(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> dict[str, Any]:
        """What each layer needs besides the hidden state.

        Without a mask and a cache, positions that start anew mark rows packed into one sequence, and no row
        sees another (transformers' `create_causal_mask`).

        Args:
            hidden: the embedded tokens, shape [batch, tokens, hidden].
            attention_mask: 0 for padding, shape [batch, tokens so far].
            position_ids: shape [batch, tokens]; default: counted on from the cache.
            cache: keys and values of earlier tokens.
        """
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen).unsqueeze(0)
        return {
            "attention_mask": create_causal_mask(
                config=self.config, inputs_embeds=hidden, attention_mask=attention_mask,
                past_key_values=cache, position_ids=position_ids,
            ),
            "position_ids": position_ids,
            "position_embeddings": self.rotary_emb(hidden, position_ids=position_ids),
            "past_key_values": cache,
        }  # fmt: skip

    def lower(self, hidden: torch.Tensor, **shape: Any) -> torch.Tensor:
        """The layers below the cut; returns what enters the cut layer."""
        for layer in self.layers[: self.layout.cut]:
            hidden = layer(hidden, **shape)
        return hidden

    def upper(self, hidden: torch.Tensor, **shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The layers from the cut on.

        Args:
            hidden: what enters the cut layer, shape [batch, tokens, hidden].
            shape: what each layer needs besides.

        Returns:
            What enters the last layer and what leaves it (before the final norm), in the shape of `hidden`.
        """
        states = self.norm_swiftkv(hidden)
        group, entering = None, hidden
        for index in self.layout.upper:
            group = Group(states) if index in self.layout.owners else group
            entering, hidden = hidden, self.layers[index](hidden, group=group, **shape)
        return entering, hidden

    def base_upper(self, hidden: torch.Tensor, **shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The same layers as the base runs them; needs a config with `keep_base_projections`."""
        entering = hidden
        for index in self.layout.upper:
            entering, hidden = hidden, self.layers[index](hidden, **shape)
        return entering, hidden


class LlamaSwiftKVModel(SwiftKVModel, llama.LlamaModel):
    """Llama's."""

    config_class = LlamaSwiftKVConfig
    upper_attention = LlamaUpperAttention
    norm_type = llama.LlamaRMSNorm


class Qwen2SwiftKVModel(SwiftKVModel, qwen2.Qwen2Model):
    """Qwen2's."""

    config_class = Qwen2SwiftKVConfig
    upper_attention = Qwen2UpperAttention
    norm_type = qwen2.Qwen2RMSNorm


class Qwen3SwiftKVModel(SwiftKVModel, qwen3.Qwen3Model):
    """Qwen3's."""

    config_class = Qwen3SwiftKVConfig
    upper_attention = Qwen3UpperAttention
    norm_type = qwen3.Qwen3RMSNorm


class SwiftKVForCausalLM(PreTrainedModel):
    """The decoder and its head. Stands before a transformers causal language model."""

    decoder: type[SwiftKVModel]

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)  # the base's own would make its decoder too
        self.model = self.decoder(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not getattr(config, "keep_base_projections", False):
            upper = "|".join(str(index) for index in self.model.layout.upper)
            self._keys_to_ignore_on_load_unexpected = [rf"layers\.({upper})\.self_attn\.[qkv]_(proj|norm)\."]
        self.post_init()

    @can_return_tuple
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' causal language models."""
        return super().forward(*args, **kwargs)


class LlamaSwiftKVForCausalLM(SwiftKVForCausalLM, llama.LlamaForCausalLM):
    """Llama with SwiftKV."""

    config_class = LlamaSwiftKVConfig
    decoder = LlamaSwiftKVModel


class Qwen2SwiftKVForCausalLM(SwiftKVForCausalLM, qwen2.Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5 with SwiftKV."""

    config_class = Qwen2SwiftKVConfig
    decoder = Qwen2SwiftKVModel


class Qwen3SwiftKVForCausalLM(SwiftKVForCausalLM, qwen3.Qwen3ForCausalLM):
    """Qwen3 (dense) with SwiftKV."""

    config_class = Qwen3SwiftKVConfig
    decoder = Qwen3SwiftKVModel
