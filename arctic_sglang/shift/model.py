"""Shift Parallelism in a model that SGLang has made and loaded: two moments, and nothing in its scheduler or runner.

While a model is made, linear layers take the sizes of the base tensor parallelism (`before_linear_init`). When it is
loaded, its layers are switched (`after_load`). In between SGLang loads what every layer says it wants.
"""

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np
import torch

from arctic_sglang.compat import vendor
from arctic_sglang.shift import formats, layers, limits, modules, start, weights
from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.formats import Format
from arctic_sglang.shift.layers import Shift, Switched
from arctic_sglang.shift.loading import one_by_one
from arctic_sglang.shift.policy import AUTO, Mode, Policy
from arctic_sglang.shift.push import Vocabulary
from arctic_sglang.shift.topology import Heads, Topology

logger = logging.getLogger(__name__)

_NOT_AGAIN = "weights that were quantised are not loaded again: start the server with the new ones"


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
    # Else a class above has decided already, or somebody has shared the weights out over all ranks.
    if kwargs.get("tp_size") in (None, topology.world) and not kwargs.get("use_presharded_weights"):
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
    threshold = args._arctic.shift_threshold
    shift = Shift(topology, group.rank_in_group, Policy(None if threshold == AUTO else threshold), exchange)
    model = runner.model
    switched = list(_switch_linears(model, limits.heads_of(runner.model_config.hf_config, topology), shift))
    _check_all(model, switched)
    if runner.device == "cuda":
        shift.exchange = start.symmetric(runner, exchange, shift, switched)
    for layer in model.model.layers:
        _switch_communicator(layer, shift)
    _switch_experts(model, shift)
    if hasattr(model.model, "at_cut"):
        modules.switch_cut(model.model, shift)
        modules.switch_tail(model, shift)
    embedding = model.model.embed_tokens
    modules.switch_embedding(embedding, _vocabulary_of(embedding), shift)
    if hasattr(model, "logits_processor"):
        modules.switch_last(model.logits_processor, shift, rows=1, chosen=_last_tokens)
    if hasattr(model, "pooler"):
        modules.switch_last(model.pooler, shift, rows=0)
    _switch_steps(model, shift)
    _keep_loadable(model, switched)
    start.get_ready(runner, shift, switched, auto=threshold == AUTO)
    runner.shift, runner.switched = shift, switched
    if group.rank_in_group == 0:
        logger.info("arctic-sglang: %s", start.told(shift, switched))


def after_forward(result: Any, runner: Any, batch: Any, *_args: Any, **_kwargs: Any) -> Any:
    """Takes note of a step's mode, which in a CUDA graph was chosen when it was captured.

    Args:
        result: of SGLang's forward.
        runner: SGLang's.
        batch: of the step.
    """
    shift = runner.shift
    if result.can_run_graph and batch.forward_mode.is_cuda_graph():
        graph = runner.decode_cuda_graph_runner
        tokens = graph.bs * graph.captured_req_width
        shift.figures.count(shift.policy.mode(tokens), tokens)
        shift.ran = None
    shift.note()
    return result


def after_metrics_reporter(_result: None, scheduler: Any, *_args: Any, **_kwargs: Any) -> None:
    """Publishes a rank's figures to Prometheus, if SGLang's are."""
    context = scheduler.metrics_collector_context
    if context.current_scheduler_metrics_enabled:
        from arctic_sglang.shift.metrics import ShiftMetrics  # its import must follow SGLang's set-up

        scheduler.tp_worker.model_runner.shift.figures.publish(ShiftMetrics(context.collector.labels))


def after_internal_state(result: Any, scheduler: Any, _request: Any) -> Any:
    """Adds a section `shift` to what /server_info tells of a scheduler."""
    result.internal_state["shift"] = scheduler.tp_worker.model_runner.shift.told()
    return result


def around_update(original: Any, updater: Any, *args: Any, **kwargs: Any) -> tuple[bool, str]:
    """Refuses new weights where the old ones were quantised, which SGLang cannot do then either: loaders are gone.

    Args:
        original: SGLang's method.
        updater: SGLang's object.
        args: of the method.
        kwargs: of the method.
    """
    if any(one.form.quantized for one in updater.get_model_runner().switched):
        return False, _NOT_AGAIN
    return original(updater, *args, **kwargs)


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
    return around_update(original, updater, named_tensors, load_format)


def _switch_linears(model: Any, heads: Heads, shift: Shift) -> Iterator[Switched]:
    for parent in list(model.modules()):
        found = {type(child): child for child in parent.children()}
        qkv, row = found.get(vendor.QKVParallelLinear), found.get(vendor.RowParallelLinear)
        merged, queries = found.get(vendor.MergedColumnParallelLinear), found.get(vendor.ColumnParallelLinear)
        if qkv is not None and row is not None:
            shard = shift.topology.shard(shift.rank)
            order = weights.qkv_order(heads, shard, qkv.head_size, qkv.v_head_size)
            yield layers.SwitchedQkv(qkv, shift, order, format_of(qkv))
            yield layers.SwitchedOutput(row, shift, form=format_of(row))
        elif (
            queries is not None and row is not None
        ):  # of a layer that has its keys and values from elsewhere
            order = np.arange(queries.output_size // shift.topology.tp)
            yield layers.SwitchedQkv(queries, shift, order, format_of(queries))
            yield layers.SwitchedOutput(row, shift, form=format_of(row))
        elif merged is not None and row is not None:
            order = weights.merged_order(merged.output_partition_sizes, shift.topology.sp)
            yield layers.SwitchedGateUp(merged, shift, order, format_of(merged))
            yield layers.SwitchedRow(row, shift, form=format_of(row))


def format_of(layer: Any) -> Format:
    """The format of a layer's weights, after SGLang's `process_weights_after_loading`.

    Args:
        layer: a linear one of SGLang's.

    Raises:
        ValueError: a part of them is no view of them.
    """
    method = layer.quant_method
    if type(method) is vendor.UnquantizedLinearMethod:
        return formats.PLAIN
    if not _has_scaled_fp8(layer):
        name = type(getattr(layer, "scheme", None) or method).__name__
        msg = (
            f"--ulysses-sequence-parallel-size: {name} has prepared the weights of a {type(layer).__name__} in a way "
            f"that is not switched; {limits.SWITCHED}"
        )
        raise ValueError(msg)
    return formats.fp8(layer, layer.params_dtype, method.apply)


def _has_scaled_fp8(layer: Any) -> bool:
    """Neither packed for Marlin nor with scales of blocks."""
    method = layer.quant_method
    if type(method) is vendor.Fp8LinearMethod:
        return not (method.use_marlin or method.block_quant)
    return (
        type(method) is vendor.CompressedTensorsLinearMethod
        and type(layer.scheme) is vendor.CompressedTensorsW8A8Fp8
        and layer.scheme.weight_block_size is None
    )


def _check_all(model: Any, switched: list[Switched]) -> None:
    known = {id(one.layer) for one in switched}
    kinds = (vendor.ColumnParallelLinear, vendor.RowParallelLinear)
    for name, module in model.named_modules():
        if not isinstance(module, kinds) or id(module) in known:
            continue
        if not getattr(module, "use_presharded_weights", False):  # else it is one of all ranks in both modes
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
            modules.switch_experts(block, _unsummed, shift)


def _unsummed() -> Any:
    """SGLang's own way to tell a block of experts that somebody behind it sums over ranks."""
    return vendor.get_forward().scoped(mlp_reduce_scatter=True)


def _vocabulary_of(embedding: Any) -> Callable[[], Vocabulary]:
    """A rank's part of SGLang's embeddings.

    Raises:
        ValueError: there are tokens beside those of the checkpoint.
    """
    indices = embedding.shard_indices
    if indices.num_added_elements:
        raise ValueError("--ulysses-sequence-parallel-size: a vocabulary with added tokens is not supported")
    first, last = indices.org_vocab_start_index, indices.org_vocab_end_index
    return lambda: Vocabulary(embedding.weight.data[: last - first], first, embedding.org_vocab_size)


def _last_tokens(_ids: Any, _rows: Any, _head: Any, batch: Any, *others: Any) -> torch.Tensor | None:
    """Which rows logits are computed of, where that is the last token of each request alone; None elsewhere."""
    mode = batch.forward_mode
    if any(other is not None for other in others) or not mode.is_extend():
        return None
    if mode.is_target_verify() or mode.is_draft_extend_v2() or mode.is_dllm_extend() or batch.return_logprob:
        return None
    if batch.capture_hidden_mode.need_capture() or batch.multi_item_delimiter_indices is not None:
        return None
    return torch.cumsum(batch.extend_seq_lens, 0) - 1


def _switch_steps(model: Any, shift: Shift) -> None:
    """The mode is chosen where a step begins: with the model, or with its layers where those alone are captured."""
    for module in (model, model.model):
        module.forward = _in_its_mode(module.forward, shift)


def _in_its_mode(forward: Any, shift: Shift) -> Any:
    @wraps(forward)
    def in_its_mode(
        input_ids: Any, positions: Any, batch: Any, input_embeds: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        # Embeddings that a request brings are rows of all tokens, which nobody has shared out.
        with shift.step(len(input_ids), None if input_embeds is None else Mode.TENSOR):
            return forward(input_ids, positions, batch, input_embeds, *args, **kwargs)

    return in_its_mode


def _keep_loadable(model: Any, switched: list[Switched]) -> None:
    """New weights come as the first ones did, unless those were quantised."""
    load = model.load_weights

    @wraps(load)
    def load_weights(*args: Any, **kwargs: Any) -> Any:
        if any(one.form.quantized for one in switched):
            raise ValueError(_NOT_AGAIN)
        with one_by_one(switched):
            return load(*args, **kwargs)

    model.load_weights = load_weights
