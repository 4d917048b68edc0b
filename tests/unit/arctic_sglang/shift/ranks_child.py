"""Ranks of a small decoder over gloo: every mode against one process that has it all. Run by test_ranks.py.

Usage: ranks_child.py RANK WORLD FILE. Prints one line of JSON for each case.
"""

import json
import sys
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from arctic_sglang.shift import formats, layers, modules, weights
from arctic_sglang.shift.exchange import Collectives
from arctic_sglang.shift.policy import Policy
from arctic_sglang.shift.push import Vocabulary
from arctic_sglang.shift.topology import Heads, Topology

DIM, HIDDEN, INNER, VOCABULARY = 4, 24, 24, 24
LAYERS = ("dense", "experts")
EXPERTS, CHOSEN = 5, 2


class Overlapping(Collectives):
    """Part by part, whatever the size."""

    def overlaps(self, tokens):
        return True


class Linear(nn.Module):
    """As SGLang's layers are: a row parallel one adds up over all ranks, and its bias once."""

    def __init__(self, weight, bias, scale=None, add=None):
        super().__init__()
        self.bias, self.add = nn.Parameter(bias.clone()), add
        if scale is None:
            self.weight, self.form = nn.Parameter(weight.clone()), formats.PLAIN
        else:  # transposed, as SGLang keeps fp8
            self.weight = nn.Parameter(
                (weight / scale[:, None]).to(torch.float8_e4m3fn).t(), requires_grad=False
            )
            self.weight_scale = nn.Parameter(scale[None, :])
            self.form = formats.fp8(self, torch.float64, scaled_packed)
        self.tp_rank, self.tp_size = None, None

    def forward(self, x):
        if self.add is None:
            return self.form.product(self, x, self.bias), None
        product = self.form.product(self, x, self.bias if self.tp_rank == 0 else None)
        if self.tp_size > 1:
            distributed.all_reduce(product, group=self.add)
        return product, None


def scaled_packed(layer, x, bias):
    """A product with an fp8 weight [in, out] by a kernel that knows no gaps between its columns."""
    weight = layer.weight.as_strided(layer.weight.shape, (1, len(layer.weight)))
    product = x @ weight.to(x.dtype) * layer.weight_scale
    return product if bias is None else product + bias


class Experts(nn.Module):
    """As SGLang's: each rank has a part of every expert, and the block adds up over all of them."""

    def __init__(self, router, up, down, group):
        super().__init__()
        self.router, self.up, self.down, self.group, self.adds = router, up, down, group, True

    @contextmanager
    def unsummed(self):
        self.adds = False
        yield
        self.adds = True

    def forward(self, rows):
        product = mixture(rows, self.router, self.up, self.down)
        if self.adds:
            distributed.all_reduce(product, group=self.group)
        return product


def mixture(rows, router, up, down):
    """Each row through the experts of its choice."""
    scores, chosen = (rows @ router.T).softmax(1).topk(CHOSEN)
    share = torch.zeros(len(rows), EXPERTS, dtype=rows.dtype).scatter(1, chosen, scores)
    inner = silu(torch.einsum("nh,eih->nei", rows, up))
    return torch.einsum("nei,ehi,ne->nh", inner, down, share)


class Embedding(nn.Module):
    """Of a vocabulary that all ranks share out."""

    def __init__(self, table, rank, world, group):
        super().__init__()
        rows = len(table) // world
        self.group, self.own = (
            group,
            Vocabulary(table[rank * rows : (rank + 1) * rows], rank * rows, len(table)),
        )

    def forward(self, ids):
        found = self.own.rows(ids)
        distributed.all_reduce(found, group=self.group)
        return found


class Logits(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, ids, rows):
        assert len(ids) == len(rows)
        return rows @ self.table.T


def weights_of(heads, fp8):
    """The model's, the same on every rank: weight, bias and, in fp8, the scale of each row."""
    generator = torch.Generator().manual_seed(heads.query)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 4

    def linear_of(rows, columns):
        weight = random(rows, columns)
        if not fp8:
            return weight, random(rows)
        scale = weight.abs().amax(1) / 448
        rounded = (weight / scale[:, None]).to(torch.float8_e4m3fn).to(weight.dtype)
        return rounded * scale[:, None], random(rows), scale

    sizes = {"q": heads.query * DIM, "k": heads.kv * DIM, "v": heads.kv * DIM, "gate": INNER, "up": INNER}
    found = {"table": random(VOCABULARY, HIDDEN), "layers": []}
    for _ in LAYERS:
        layer = {name: linear_of(rows, HIDDEN) for name, rows in sizes.items()}
        layer["experts"] = (
            random(EXPERTS, HIDDEN), random(EXPERTS, INNER, HIDDEN), random(EXPERTS, HIDDEN, INNER)
        )  # fmt: skip
        layer |= {
            "o": linear_of(HIDDEN, heads.query * DIM),
            "down": linear_of(HIDDEN, INNER),
        }
        found["layers"].append(layer)
    return found


class Decoder:
    """This rank's part of the decoder, loaded for the base tensor parallelism."""

    def __init__(self, heads, rank, group, fp8):
        self.heads, self.rank, self.fp8, topology = heads, rank, fp8, heads.topology
        known, shard = weights_of(heads, fp8), topology.shard(rank)
        query, kv = (
            slice(of.start * DIM, of.stop * DIM)
            for of in (heads.query_of_shard(shard), heads.kv_of_shard(shard))
        )
        inner = slice(shard * INNER // topology.tp, (shard + 1) * INNER // topology.tp)
        part = slice(rank * INNER // topology.world, (rank + 1) * INNER // topology.world)
        self.embedding = Embedding(known["table"], rank, topology.world, group)
        self.logits = Logits(known["table"])
        self.layers = []
        for layer in known["layers"]:
            made = {}
            for name, parts in (
                ("qkv", (("q", query), ("k", kv), ("v", kv))),
                ("gate_up", (("gate", inner), ("up", inner))),
            ):
                made[name] = Linear(
                    *(torch.cat([layer[of][which][rows] for of, rows in parts]) for which in range(2 + fp8))
                )
            for name, columns in (("o", query), ("down", inner)):
                made[name] = Linear(layer[name][0][:, columns], *layer[name][1:], add=group)
            router, up, down = layer["experts"]
            made["experts"] = Experts(router, up[:, part], down[:, :, part], group)
            self.layers.append(made)
        self.cache = []

    def switch(self, shift):
        order = weights.qkv_order(self.heads, shift.topology.shard(self.rank), DIM)
        merged = weights.merged_order([INNER // shift.topology.tp] * 2, shift.topology.sp)
        self.switched = []
        for layer in self.layers:
            self.switched += [
                layers.SwitchedQkv(layer["qkv"], shift, order, layer["qkv"].form),
                layers.SwitchedOutput(layer["o"], shift, form=layer["o"].form),
                layers.SwitchedGateUp(layer["gate_up"], shift, merged, layer["gate_up"].form),
                layers.SwitchedRow(layer["down"], shift, form=layer["down"].form),
            ]
            modules.switch_experts(layer["experts"], layer["experts"].unsummed, shift)
        modules.switch_embedding(self.embedding, lambda: self.embedding.own, shift)
        modules.switch_last(self.logits, shift, rows=1)

    def __call__(self, ids):
        self.cache, rows = [], self.embedding(ids)
        for kind, layer in zip(LAYERS, self.layers, strict=True):
            rows = rows + layer["o"](self.attention(layer["qkv"](rows)[0]))[0]
            if kind == "experts":
                rows = rows + layer["experts"](rows)
                continue
            gate, up = layer["gate_up"](rows)[0].chunk(2, dim=1)
            rows = rows + layer["down"](silu(gate) * up)[0]
        return self.logits(ids, rows)

    def attention(self, qkv):
        query, kv = self.heads.query_of_rank(self.rank), self.heads.kv_of_rank(self.rank)
        q, k, v = qkv.split([len(query) * DIM, len(kv) * DIM, len(kv) * DIM], dim=1)
        self.cache.append((k, v))
        q, k, v = (x.reshape(len(x), -1, DIM).transpose(0, 1) for x in (q, k, v))
        of = [head // (self.heads.query // self.heads.kv) - kv.start for head in query]
        found = scaled_dot_product_attention(q, k[of], v[of], is_causal=True)
        return found.transpose(0, 1).reshape(found.shape[1], -1)


def reference(heads, ids, fp8):
    """One process with everything; keys and values of all heads."""
    known = weights_of(heads, fp8)
    rows, cache = known["table"][ids], []
    for kind, layer in zip(LAYERS, known["layers"], strict=True):
        q, k, v = (linear(rows, *layer[name][:2]) for name in "qkv")
        cache.append((k, v))
        q, k, v = (x.reshape(len(x), -1, DIM).transpose(0, 1) for x in (q, k, v))
        repeat = heads.query // heads.kv
        found = scaled_dot_product_attention(
            q, k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0), is_causal=True
        )
        rows = rows + linear(found.transpose(0, 1).reshape(len(rows), -1), *layer["o"][:2])
        if kind == "experts":
            rows = rows + mixture(rows, *layer["experts"])
            continue
        gate, up = (linear(rows, *layer[name][:2]) for name in ("gate", "up"))
        rows = rows + linear(silu(gate) * up, *layer["down"][:2])
    return rows @ known["table"].T, cache


def apart(decoder, heads, ids):
    """How far this rank's logits, keys and values are from those of one process."""
    wanted, wanted_cache = reference(heads, ids, decoder.fp8)
    found = decoder(ids)
    own = heads.kv_of_rank(decoder.rank)
    columns = slice(own.start * DIM, own.stop * DIM)
    errors = [(found - wanted).abs().max()] + [
        (a - b[:, columns]).abs().max()
        for pair, wanted_pair in zip(decoder.cache, wanted_cache, strict=True)
        for a, b in zip(pair, wanted_pair, strict=True)
    ]
    assert found.shape == wanted.shape
    return float(torch.stack(errors).max())


def case(topology, kv, threshold, rank, group, fp8):
    """With one of the thresholds, parts travel beside products."""
    made = Overlapping if threshold == 3 else Collectives
    heads = Heads(topology, 12 if 12 % topology.world == 0 else topology.world, kv)
    decoder = Decoder(heads, rank, group, fp8)
    shift = layers.Shift(topology, rank, Policy(threshold), made(topology, rank, group))
    decoder.switch(shift)
    generator, worst = torch.Generator().manual_seed(1), 0.0
    for count in (7, 1, 2, 12, 3, 5):
        ids = torch.randint(VOCABULARY, (count,), generator=generator)
        with shift.step(count):
            worst = max(worst, apart(decoder, heads, ids))
        shift.figures.count(*shift.ran)
    if not fp8:
        load_again(decoder, topology)
    for count in (1, 11):
        with shift.step(count):
            worst = max(worst, apart(decoder, heads, torch.arange(count)))
        shift.figures.count(*shift.ran)
    told = {
        "steps": {mode.value: n for mode, n in shift.figures.steps.items()},
        "switches": shift.figures.switches,
    }
    told |= {"fp8": fp8, "copies": sum(switched.copied is not None for switched in decoder.switched)}
    return {"tp": topology.tp, "sp": topology.sp, "kv": kv, "threshold": threshold, "apart": worst, **told}


def load_again(decoder, topology):
    """In place, with what it was loaded with."""
    where = [switched.whole["weight"].data_ptr() for switched in decoder.switched]
    for switched in decoder.switched:
        switched.give()
        assert switched.layer.tp_size == topology.tp
        switched.layer.weight.data = switched.layer.weight.data.clone()
        switched.whole["weight"].zero_()
        switched.take()
    assert where == [switched.whole["weight"].data_ptr() for switched in decoder.switched]


def main():
    rank, world, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    three = distributed.new_group([0, 1, 2])
    four = [(1, 4, 4), (1, 4, 2), (2, 2, 4), (2, 2, 1), (4, 1, 2)]
    cases = [(*one, False) for one in four] + [(*one, True) for one in four[1:4]]
    # Last, as all ranks of a process group count the groups that they make.
    cases += [(1, 3, 3, False), (3, 1, 1, False)]
    for tp, sp, kv, fp8 in cases:
        group = three if tp * sp == 3 else distributed.group.WORLD
        if rank >= tp * sp:
            continue
        for threshold in (None, 0, 3):
            told = case(Topology(tp, sp), kv, threshold, rank, group, fp8)
            print(json.dumps(told | {"rank": rank}), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
