"""Parts of fp8 weights against contiguous copies of the same parts, with SGLang's layers and kernels. One GPU.

`pytest tests/gpu/test_shift_fp8.py -m gpu -q -s` prints a line for each layer: by how much products differ (as a share
of the largest number), whether the part had to be copied, and the medians of 20 runs with a view and with a copy.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from arctic_sglang.shift import formats, layers, weights
from arctic_sglang.shift.policy import Policy
from arctic_sglang.shift.topology import Heads, Tokens, Topology

pytestmark = pytest.mark.gpu

DIM = 128
ROWS = (1, 3, 16, 17, 64, 65, 256, 300, 1024, 1100, 2048)
TIMED = (1, 64, 2048)
ROUNDING = 2**-7  # bf16: 8 bits
QUANTISED = 0.06  # of the norm: weights and rows of 4 bits each
MODELS = {"8B": (4096, 14336, 32, 8), "70B": (8192, 28672, 64, 8)}
KINDS = ("fp8-online", "fp8-static", "fp8-dynamic", "ct-channel", "ct-tensor-dynamic", "ct-tensor-static")


@pytest.fixture(scope="module", autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA GPU here")
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    with torch.device("cuda"), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        from sglang.srt.layers.quantization import fp8_utils

        # All that SGLang's fp8 product asks of a server.
        prefill = SimpleNamespace(tc_compiler="eager")
        graph = SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=prefill))
        patch.setattr(fp8_utils, "get_exec", lambda: SimpleNamespace(graph=graph))
        yield


def config_of(kind):
    from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
    from sglang.srt.layers.quantization.fp8 import Fp8Config

    if kind == "fp8-online":
        return Fp8Config()
    if kind.startswith("fp8"):
        return Fp8Config(is_checkpoint_fp8_serialized=True, activation_scheme=kind.split("-")[1])
    strategy, dynamic = kind.split("-")[1], not kind.endswith("static")
    common = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "dynamic": False, "strategy": strategy},
        "input_activations": {**common, "dynamic": dynamic, "strategy": "token" if dynamic else "tensor"},
    }
    return CompressedTensorsConfig.from_config(
        {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
         "config_groups": {"group_0": group}}
    )  # fmt: skip


class Case:
    """A layer of SGLang's, loaded for one rank of the base tensor parallelism, with the weights it was made from."""

    def __init__(self, kind, layer, sizes, columns, bias=False):
        from sglang.srt.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear

        self.name, self.sizes, self.columns = layer, sizes, columns
        options = {
            "params_dtype": torch.bfloat16, "quant_config": config_of(kind), "bias": bias, "tp_rank": 0, "tp_size": 1,
            "prefix": f"model.layers.0.{layer}",
        }  # fmt: skip
        if layer == "qkv_proj":
            self.layer = QKVParallelLinear(columns, DIM, sizes[0] // DIM, sizes[1] // DIM, **options)
        elif layer == "gate_up_proj":
            self.layer = MergedColumnParallelLinear(columns, list(sizes), **options)
        else:
            self.layer = RowParallelLinear(columns, sizes[0], **options)
        self.generator = torch.Generator("cuda").manual_seed(len(layer) + columns)
        # Outputs that are merged differ in size, so that a scale that went to the wrong one is seen.
        spread = torch.cat([torch.full((n, 1), 0.02 * (1 + i)) for i, n in enumerate(sizes)])
        self.made = self.random(sum(sizes), columns) * spread
        self.load()
        if bias:
            self.layer.bias.data = self.random(sum(sizes)).bfloat16()
        self.layer.quant_method.process_weights_after_loading(self.layer)
        self.loaded = {name: tensor.data.clone() for name, tensor in self.layer.named_parameters()}

    def random(self, *shape):
        return torch.empty(*shape).normal_(generator=self.generator)

    def load(self):
        """What a checkpoint holds."""
        layer = self.layer
        if layer.weight.dtype == torch.bfloat16:
            layer.weight.data.copy_(self.made)
            return
        if layer.weight_scale.numel() == sum(self.sizes):
            scale = self.made.abs().amax(1, keepdim=True) / 448
            layer.weight_scale.data.copy_(scale)
        else:
            each = torch.stack([part.abs().max() / 448 for part in self.made.split(self.sizes)])
            layer.weight_scale.data.copy_(each)
            scale = torch.repeat_interleave(each, torch.tensor(self.sizes))[:, None]
        layer.weight.data.copy_((self.made / scale).to(torch.float8_e4m3fn))
        if getattr(layer, "input_scale", None) is not None:
            layer.input_scale.data.fill_(5.5 / 448)

    def switched(self, sp, position):
        """The layer, switched, and its tensors as plain tensor parallelism over `sp` ranks would have them."""
        from arctic_sglang.shift.model import format_of

        self.layer.__dict__.pop("forward", None)
        for name, tensor in self.loaded.items():
            getattr(self.layer, name).data = tensor.clone()
        shift = layers.Shift(Topology(1, sp), position, Policy(None), exchange=None)
        wanted = dict(self.loaded)
        if self.name in ("qkv_proj", "gate_up_proj"):
            if self.name == "qkv_proj":
                heads = Heads(shift.topology, self.sizes[0] // DIM, self.sizes[1] // DIM)
                order, kind = weights.qkv_order(heads, 0, DIM), layers.SwitchedQkv
            else:
                order, kind = weights.merged_order(self.sizes, sp), layers.SwitchedGateUp
            starts = np.cumsum([0, *self.sizes[:-1]])
            rows = torch.cat(
                [
                    int(start) + position * (n // sp) + torch.arange(n // sp)
                    for start, n in zip(starts, self.sizes, strict=True)
                ]
            )
            wanted["weight"] = self.loaded["weight"].t()[rows].t()
            if (scale := self.loaded["weight_scale"]).numel() > 1:
                wanted["weight_scale"] = scale.reshape(-1)[rows].view(
                    *(len(rows) if n > 1 else 1 for n in scale.shape)
                )
            if "bias" in self.loaded:
                wanted["bias"] = self.loaded["bias"][rows]
            return kind(self.layer, shift, order, format_of(self.layer)), wanted
        columns = self.columns // sp
        wanted["weight"] = (
            self.loaded["weight"][position * columns : (position + 1) * columns].t().contiguous().t()
        )
        return layers.SwitchedRow(self.layer, shift, form=format_of(self.layer)), wanted


def apart(found, wanted):
    """As a share of the largest number; 9 where one is none."""
    return torch.nan_to_num((found - wanted).abs().max().float() / wanted.abs().max(), nan=9.0).item()


def median_us(call, evict):
    """Of 20 runs, each with cold caches, in microseconds."""
    for _ in range(3):
        call()
    times = []
    for _ in range(20):
        evict.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return float(np.median([1000 * start.elapsed_time(end) for start, end in times]))


def refusal(call):
    """What a product says that is refused; None."""
    try:
        call()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def try_views(case, seen, wanted):
    """The part where it lies, whatever the layer does: how far from the copy at worst."""
    worst = 0.0
    for rows in ROWS:
        x = case.random(rows, seen.weight.shape[0]).bfloat16()
        if refusal(lambda x=x: case.layer.quant_method.apply(seen, x)) is not None:
            return 9.0
        worst = max(worst, apart(*(case.layer.quant_method.apply(one, x) for one in (seen, wanted))))
    return worst


def rowwise(seen, x):
    """The same product with torch, which takes strides, instead of CUTLASS: whether it would save the copy."""
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_quant_fp8

    rows, scale = sglang_per_token_quant_fp8(x)
    return torch._scaled_mm(
        rows, seen.weight, scale_a=scale, scale_b=seen.weight_scale.reshape(1, -1), out_dtype=torch.bfloat16
    )


def check_part(case, sp, position):
    """One rank. Returns the worst difference, that of the bare view, and the parts."""
    switched, tensors = case.switched(sp, position)
    layer, apply = case.layer, case.layer.quant_method.apply
    wanted = formats.Seen(layer, tensors)
    worst = 0.0
    for rows in ROWS:
        x = case.random(rows, layer.weight.shape[0]).bfloat16()
        worst = max(worst, apart(apply(layer, x, layer.bias), apply(wanted, x, tensors.get("bias"))))
    view = switched._part("weight", switched.whole["weight"])
    assert view.untyped_storage().data_ptr() == switched.whole["weight"].untyped_storage().data_ptr()
    seen = formats.Seen(layer, {"weight": view})
    bare = try_views(case, seen, wanted)
    assert (switched.copied is not None) == (bare > 2**-5), (
        "a copy where a view would do, or the other way round"
    )
    if switched.order is not None:
        assert switched.copied is None
        assert layer.weight.t().is_contiguous()
    return worst, bare, switched, seen, wanted


def check_whole(case, switched):
    """The product of sequence parallelism against float32 and the numbers that the weights were made from."""
    x = case.random(129, case.columns).bfloat16()
    found = switched.product(x).float()
    bias = switched.whole.get("bias")
    wanted = x.float() @ case.made.T
    if switched.order is not None:
        wanted = wanted[:, torch.from_numpy(switched.order).cuda()]
    if bias is not None:
        wanted = wanted + bias
    far = ((found - wanted).norm() / wanted.norm()).item()
    assert far < QUANTISED, far
    if isinstance(switched, layers.SwitchedGateUp):
        tokens = Tokens(129 * switched.shift.topology.sp, switched.shift.topology.sp)
        assert torch.equal(switched.sequence_parallel(x, tokens).view(129, -1).float(), found)
    return far


def check_layer(kind, case, sp, evict):
    """Both ends of a group of ranks; prints a line."""
    worst, bares = 0.0, []
    for position in sorted({0, sp - 1}):
        one, bare, switched, seen, wanted = check_part(case, sp, position)
        worst, bares = max(worst, one), [*bares, bare]
        copied = switched.copied is not None
        far = check_whole(case, switched)
    times = []
    for rows in TIMED:
        x, apply = case.random(rows, seen.weight.shape[0]).bfloat16(), case.layer.quant_method.apply
        copy = median_us(lambda x=x, apply=apply: apply(wanted, x), evict)
        if not copied:
            times.append(f"{median_us(lambda x=x, apply=apply: apply(seen, x), evict):.0f}/{copy:.0f}")
        elif (why := refusal(lambda x=x: rowwise(seen, x))) is not None:
            times.append(f"-/{copy:.0f} (torch: {why[:60]})")
        else:
            far_off = apart(rowwise(seen, x), apply(wanted, x))
            torch_us = median_us(lambda x=x: rowwise(seen, x), evict)
            times.append(f"-/{copy:.0f} (torch {torch_us:.0f}, {far_off:.4f} apart)")
    print(
        f"{kind:17} sp={sp} {case.name:12} part {worst:.5f} whole {far:.3f} bare view {max(bares):.4f} "
        f"{'COPY' if copied else 'view'} us view/copy at {TIMED} rows: {' '.join(times)}",
        flush=True,
    )
    assert worst <= ROUNDING


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_with_parts_are_those_of_contiguous_copies(kind, model):
    hidden, inner, heads, kv = MODELS[model]
    evict = torch.empty(2**28, dtype=torch.uint8)
    print(f"\n{model}")
    for layer, sizes, columns in (
        ("qkv_proj", [heads * DIM, kv * DIM, kv * DIM], hidden), ("o_proj", [hidden], heads * DIM),
        ("gate_up_proj", [inner, inner], hidden), ("down_proj", [hidden], inner),
    ):  # fmt: skip
        case = Case(kind, layer, sizes, columns, bias=layer == "qkv_proj")
        for sp in (2, 4):
            check_layer(kind, case, sp, evict)
        del case
        torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", KINDS)
def test_odd_parts_are_right_or_refused_at_the_start(kind):
    # Whole, 1,360 columns are a multiple of 16; a part of 680 is none.
    for layer, sizes, columns in (("gate_up_proj", [1360, 1360], 256), ("down_proj", [256], 1360)):
        case = Case(kind, layer, sizes, columns)
        try:
            worst, bare, switched, *_ = check_part(case, 2, 1)
        except ValueError as error:
            assert "there is no product with a part [680, 256]" in str(error)
            _, tensors = None, {"weight": case.loaded["weight"][680:].t().contiguous().t()}
            seen, x = formats.Seen(case.layer, tensors | {"weight_scale": case.loaded["weight_scale"]}), None
            x = case.random(5, 680).bfloat16()
            assert (
                refusal(lambda seen=seen, x=x, case=case: case.layer.quant_method.apply(seen, x)) is not None
            )
            print(f"\n{kind} {layer}: refused: {str(error).splitlines()[0]}")
            continue
        print(f"\n{kind} {layer}: part {worst:.5f} bare view {bare:.4f} copied {switched.copied is not None}")
        assert worst <= ROUNDING
        check_whole(case, switched)
