"""Shift Parallelism in a model that SGLang has made and loaded: two moments, and nothing in its scheduler or runner.

While a model is made, linear layers take the sizes of the base tensor parallelism (`before_linear_init`). When it is
loaded, its layers are switched (`after_load`). In between SGLang loads what every layer says it wants.
"""

import logging
from collections.abc import Iterator
from functools import wraps
from typing import Any

from arctic_sglang.compat import vendor
from arctic_sglang.shift import layers, weights
from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.layers import Shift, Switched
from arctic_sglang.shift.limits import heads_of
from arctic_sglang.shift.policy import Mode, Policy
from arctic_sglang.shift.topology import Heads, Topology

logger = logging.getLogger(__name__)


def topology_of(args: Any) -> Topology:
    """The ranks, from SGLang's arguments, whose `tp_size` counts all of them."""
    sp = args.ulysses_sequence_parallel_size
    return Topology(args.tp_size // sp, sp)


def before_linear_init(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gives a layer that would be one of all ranks the place and the size of the base tensor parallelism.

    Args:
        args: of SGLang's layer, itself first.
        kwargs: of SGLang's layer.
    """
    topology = topology_of(vendor.get_server_args())
    if kwargs.get("tp_size") in (None, topology.world):  # else a class above has decided already
        kwargs |= {"tp_rank": topology.shard(vendor.get_tp_group().rank_in_group), "tp_size": topology.tp}
    return args, kwargs


def after_load(_result: None, runner: Any) -> None:
    """Switches the layers of the model that was loaded.

    Raises:
        ValueError: the model has a layer that nobody knows how to switch.
    """
    args, group = runner.server_args, vendor.get_tp_group()
    topology = topology_of(args)
    exchange = Collectives(topology, group.rank_in_group, group.device_group)
    shift = Shift(topology, group.rank_in_group, Policy(args._arctic.shift_threshold), exchange)
    model = runner.model
    switched = list(_switch_linears(model, heads_of(runner.model_config.hf_config, topology), shift))
    _check_all(model, switched)
    for layer in model.model.layers:
        _switch_communicator(layer, shift)
    _switch_experts(model, shift)
    embedding = model.model.embed_tokens
    layers.switch_embedding(embedding, embedding._embed_local_shard, shift)
    for name, rows in (("logits_processor", 1), ("pooler", 0)):
        if hasattr(model, name):
            layers.switch_last(getattr(model, name), shift, rows)
    _switch_steps(model, shift)
    _keep_loadable(model, switched)
    runner.shift = shift
    if group.rank_in_group == 0:
        logger.info("arctic-sglang: %s", _told(shift, switched))


def after_internal_state(result: Any, scheduler: Any, _request: Any) -> Any:
    """Adds a section `shift` to what /server_info tells of a scheduler."""
    result.internal_state["shift"] = scheduler.tp_worker.model_runner.shift.told()
    return result


def around_update_from_tensor(
    original: Any, updater: Any, named_tensors: Any, load_format: Any = None
) -> tuple[bool, str]:
    """Refuses the one way of loading that would reach this rank's part for tensor parallelism alone.

    Args:
        original: SGLang's method.
        updater: SGLang's object.
        named_tensors: new weights by name.
        load_format: "direct" copies them to the parameters of that name.
    """
    if load_format == "direct":
        return False, "load_format 'direct' does not go with --ulysses-sequence-parallel-size: leave it out"
    return original(updater, named_tensors, load_format)


def _switch_linears(model: Any, heads: Heads, shift: Shift) -> Iterator[Switched]:
    for parent in list(model.modules()):
        found = {type(child): child for child in parent.children()}
        qkv, row = found.get(vendor.QKVParallelLinear), found.get(vendor.RowParallelLinear)
        merged = found.get(vendor.MergedColumnParallelLinear)
        if qkv is not None and row is not None:
            shard = shift.topology.shard(shift.rank)
            order = weights.qkv_order(heads, shard, qkv.head_size, qkv.v_head_size)
            yield layers.SwitchedQkv(qkv, shift, order)
            yield layers.SwitchedOutput(row, shift)
        elif merged is not None and row is not None:
            yield layers.SwitchedGateUp(
                merged, shift, weights.merged_order(merged.output_partition_sizes, shift.topology.sp)
            )
            yield layers.SwitchedRow(row, shift)


def _check_all(model: Any, switched: list[Switched]) -> None:
    known = {id(one.layer) for one in switched}
    kinds = (vendor.ColumnParallelLinear, vendor.RowParallelLinear)
    for name, module in model.named_modules():
        if isinstance(module, kinds) and id(module) not in known:
            msg = (
                f"--ulysses-sequence-parallel-size: {type(model).__name__}'s layer {name} cannot be switched"
            )
            raise ValueError(msg)


def _switch_communicator(layer: Any, shift: Shift) -> None:
    """Of models whose sums over ranks are done between the layers: in sequence parallelism there are none to do."""
    communicator = getattr(layer, "layer_communicator", None)
    if communicator is None:
        return
    tensor_parallel = (communicator.prepare_attn, communicator.prepare_mlp, communicator.postprocess_layer)

    def prepare_attn(rows: Any, residual: Any, *args: Any, **kwargs: Any) -> Any:
        if shift.tokens is None:
            return tensor_parallel[0](rows, residual, *args, **kwargs)
        if residual is None:
            return layer.input_layernorm(rows), rows
        return layer.input_layernorm(rows, residual)

    def prepare_mlp(rows: Any, residual: Any, *args: Any, **kwargs: Any) -> Any:
        if shift.tokens is None:
            return tensor_parallel[1](rows, residual, *args, **kwargs)
        return layer.post_attention_layernorm(rows, residual)

    def postprocess_layer(rows: Any, residual: Any, *args: Any, **kwargs: Any) -> Any:
        if shift.tokens is None:
            return tensor_parallel[2](rows, residual, *args, **kwargs)
        return rows, residual

    communicator.prepare_attn, communicator.prepare_mlp = prepare_attn, prepare_mlp
    communicator.postprocess_layer = postprocess_layer


def _switch_experts(model: Any, shift: Shift) -> None:
    for block in model.modules():
        if any(isinstance(child, vendor.FusedMoE) for child in block.children()):
            layers.switch_experts(block, _unsummed, shift)


def _unsummed() -> Any:
    """SGLang's own way to tell a block of experts that somebody behind it sums over ranks."""
    return vendor.get_forward().scoped(mlp_reduce_scatter=True)


def _switch_steps(model: Any, shift: Shift) -> None:
    forward = model.forward

    @wraps(forward)
    def in_its_mode(
        input_ids: Any, positions: Any, batch: Any, input_embeds: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        # Embeddings that a request brings are rows of all tokens, which nobody has shared out.
        with shift.step(len(input_ids), None if input_embeds is None else Mode.TENSOR):
            return forward(input_ids, positions, batch, input_embeds, *args, **kwargs)

    model.forward = in_its_mode


def _keep_loadable(model: Any, switched: list[Switched]) -> None:
    """New weights come as the first ones did."""
    load = model.load_weights

    @wraps(load)
    def load_weights(*args: Any, **kwargs: Any) -> Any:
        for one in switched:
            one.give()
        try:
            return load(*args, **kwargs)
        finally:
            for one in switched:
                one.take()

    model.load_weights = load_weights


def _told(shift: Shift, switched: list[Switched]) -> str:
    topology = shift.topology
    size = sum(t.numel() * t.element_size() for one in switched for t in one.whole.values())
    return (
        f"Shift Parallelism over {topology.world} ranks, sequence groups {topology.sequence_groups()}: "
        f"{_modes(shift.policy)}; one copy of the linear layers, {size / 2**30:.2f} GiB a rank, where two would be "
        f"{size * (1 + 1 / topology.sp) / 2**30:.2f}"
    )


def _modes(policy: Policy) -> str:
    if policy.threshold == 0:
        return "every step in sequence parallelism"
    return (
        f"steps of up to {policy.threshold} tokens in tensor parallelism, larger ones in sequence parallelism"
    )
