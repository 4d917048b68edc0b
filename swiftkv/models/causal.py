"""The outer SwiftKV model: it takes the rows that go up on, reads the logits, and loads checkpoints."""

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from arctic_sglang.compat import vendor
from swiftkv import names
from swiftkv.models.body import SwiftKVBody
from swiftkv.models.tail import Tail, nothing_goes_up, tail_of
from swiftkv.models.tail_graphs import TailGraphs

_FLOATS = {torch.float32, torch.float16, torch.bfloat16}


class SwiftKVCausal(nn.Module):
    """Stands before a SGLang causal language model; `self.model` is a `SwiftKVBody`."""

    body_type: type[SwiftKVBody]
    _loaded_once = False

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        # The base's own would make its decoder first, and there may be no room for two.
        nn.Module.__init__(self)
        self.pp_group = vendor.get_pp_group()
        self.config, self.quant_config = config, quant_config
        self.model = self.body_type(
            config, quant_config=quant_config, prefix=vendor.add_prefix("model", prefix)
        )
        if config.tie_word_embeddings:
            self.lm_head = self.model.embed_tokens
        else:
            self.lm_head = vendor.ParallelLMHead(
                config.vocab_size, config.hidden_size, quant_config=quant_config,
                prefix=vendor.add_prefix("lm_head", prefix),
            )  # fmt: skip
        self.logits_processor = vendor.LogitsProcessor(config)
        self.capture_aux_hidden_states = False
        self.tail_graphs: TailGraphs | None = (
            None  # until decode graphs are captured, and where there are none
        )

    @torch.no_grad()
    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any,
        input_embeds: torch.Tensor | None = None, get_embedding: bool = False, pp_proxy_tensors: Any = None,
    ) -> Any:  # fmt: skip
        """Logits, as SGLang's models return them."""
        if get_embedding:
            self._refuse("embeddings")
        hidden = self.model(input_ids, positions, forward_batch, input_embeds)
        if not self.model.prunes(forward_batch, positions.shape[0]):
            return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)
        if nothing_goes_up(forward_batch):
            # The scheduler throws the token of an unfinished prompt away, but it wants one.
            logits = hidden.new_zeros((forward_batch.batch_size, self.config.vocab_size), dtype=torch.float32)
            return vendor.LogitsProcessorOutput(next_token_logits=logits)
        tail = tail_of(forward_batch)
        return self.finish(hidden[tail.rows], tail)

    def finish(self, hidden: torch.Tensor, tail: Tail) -> Any:
        """The logits of the rows that go up.

        Args:
            hidden: their state at the cut, `[rows, hidden]`.
            tail: the rows and their batch.
        """
        hidden = self._go_up(hidden, tail)
        return self.logits_processor(tail.batch.input_ids, hidden, self.lm_head, tail.batch)

    def _go_up(self, hidden: torch.Tensor, tail: Tail) -> torch.Tensor:
        """The last state of the rows that go up, from their state at the cut, in a graph where there is one."""
        # The lower half is done with the backend's metadata, and nothing reads them after the model.
        if tail.decodes and self.tail_graphs is not None:
            done = self.tail_graphs.run(tail.batch, hidden)
            if done is not None:
                return done
        vendor.get_attn_backend().init_forward_metadata(tail.batch)
        with vendor.force_eager_attention():
            pairs = None if tail.decodes else self.model.project_rows(hidden, tail.batch.positions)
            return self.model.upper(hidden, tail.batch.positions, tail.batch, pairs)

    @property
    def end_layer(self) -> int:
        """Layers of the KV cache, which SGLang sizes its pool by; fewer than the decoder's with AcrossKV."""
        return self.model.layout.kv_layers

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Loads a checkpoint with Snowflake's names.

        Raises:
            ValueError: the first load lacks a SwiftKV tensor, or a tensor is in a layer that has none.
        """
        arrived: set[str] = set()
        result = super().load_weights(self._take(weights, arrived))
        if not self._loaded_once:  # later updates may be partial
            self._check(arrived)
            self._loaded_once = True
        return result

    def post_load_weights(self) -> None:
        """SGLang calls it where weights came by another way than `load_weights`: those that come after are updates."""
        self._loaded_once = True

    def _take(
        self, weights: Iterable[tuple[str, torch.Tensor]], arrived: set[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Loads the tensors that SwiftKV adds, drops the base's that it replaces, passes on the others.

        SGLang's loaders look for `q_proj` anywhere in a name and would take `q_proj_swiftkv` for one.
        """
        layout = self.model.layout
        for name, tensor in weights:
            found = names.read(name, layout)
            if found.use is names.Use.UNUSED:
                continue
            if found.use is names.Use.BASE and name != "model.norm_swiftkv.weight":
                yield name, tensor
                continue
            arrived.add(name)
            if found.use is names.Use.BASE:
                self._copy(self.model.norm_swiftkv.weight, tensor)
                continue
            self._load(found, tensor)

    def _load(self, found: names.Tensor, tensor: torch.Tensor) -> None:
        attention = self.model.layers[found.layer].self_attn
        keys_values, layout = self.model.keys_values, self.model.layout
        group = layout.kv_layer(found.layer) - layout.cut
        if found.module == "q_norm":
            self._copy(attention.q_norm_swiftkv.weight, tensor)
        elif found.module == "k_norm":
            self._copy(keys_values.head_norms[group].weight, tensor)
        elif found.use is names.Use.QUERY:
            parameter = getattr(attention.q_proj_swiftkv, found.suffix)
            if {
                tensor.dtype,
                parameter.dtype,
            } <= _FLOATS:  # of fp8's parameters SGLang's loader refuses a cast
                tensor = tensor.to(parameter.dtype)
            parameter.weight_loader(parameter, tensor)
        else:
            keys_values.load(group, found.use is names.Use.VALUE, found.suffix, tensor)

    @staticmethod
    def _copy(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        parameter.data.copy_(tensor.reshape(parameter.shape))

    def _check(self, arrived: set[str]) -> None:
        attention = self.model.layers[self.model.layout.cut].self_attn
        wanted = names.added(
            self.model.layout,
            bias=attention.q_proj_swiftkv.bias is not None,
            head_norm=attention.q_norm_swiftkv is not None,
        )
        if msg := names.lacking(wanted, arrived):
            raise ValueError(msg)

    def forward_split_prefill(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        self._refuse("split prefill (PD multiplexing)")

    def set_eagle3_layers_to_capture(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        self._refuse("EAGLE-3, which reads hidden states of rows that never reach its layers")

    def set_dflash_layers_to_capture(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        self._refuse("DFlash, which reads hidden states of rows that never reach its layers")

    def get_weights_by_name(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        self._refuse("reading weights by name")

    def _refuse(self, what: str) -> NoReturn:
        msg = f"{type(self).__name__} does not support {what}"
        raise NotImplementedError(msg)
