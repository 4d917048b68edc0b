"""The graphs of the last rows, on a runner whose graphs compute again what was captured."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from arctic_sglang.compat import vendor
from swiftkv.models import tail_graphs
from swiftkv.models.tail_graphs import around_capture_one_shape


class Backend:
    """Runs the captured function where a GPU would run its kernels: on whatever the static inputs hold.

    What comes out lies where it lay when the graph was captured.
    """

    def __init__(self):
        self.graphs, self.outputs = {}, {}

    def capture_one(self, key, run_once, post_warmup_hook=None):
        run_once()
        if post_warmup_hook:
            post_warmup_hook()
        self.graphs[key], self.outputs[key] = run_once, run_once()

    def replay(self, key, batch):
        self.outputs[key].copy_(self.graphs[key]())
        return self.outputs[key]


class Runner:
    device, sizes = "cpu", (1, 2, 4)

    def __init__(self, model, decode="full", algorithm=None, width=1):
        self.captured_req_width = width
        self.max_bs, self.bs = max(self.sizes), None
        self.positions = torch.zeros(self.max_bs, dtype=torch.int64)
        self.planned, self.warmed = [], []
        self.backend = Backend()
        self.attn_backend = SimpleNamespace(
            init_forward_metadata_in_graph=self.planned.append,
            on_after_cuda_graph_warmup=lambda: self.warmed.append(True),
        )
        phases = {"decode": SimpleNamespace(backend=decode), "prefill": SimpleNamespace(backend="breakable")}
        args = SimpleNamespace(
            cuda_graph_config=SimpleNamespace(**phases),
            speculative_algorithm=algorithm,
            swiftkv_min_tokens=384,
        )
        self.model_runner = SimpleNamespace(model=model, server_args=args, dtype=torch.float32)

    def can_run_graph(self, batch):
        return batch.batch_size <= self.max_bs

    def load_batch(self, batch):
        self.bs = min(size for size in self.sizes if size >= batch.batch_size)
        self.positions[: batch.batch_size] = batch.positions
        self.positions[batch.batch_size : self.bs] = 0

    def capture(self, forward):
        for size in reversed(self.sizes):
            around_capture_one_shape(Runner.capture_one_shape, self, size, forward, None, None)

    def capture_one_shape(self, size, forward, stream_idx=None, variant_label=None):
        batch = SimpleNamespace(batch_size=size, positions=self.positions[:size])
        forward(None, batch.positions, batch)
        self.backend.capture_one(vendor.ShapeKey(size=size), lambda: "decode")


class Model:
    def __init__(self):
        self.tail_graphs = None
        norm = SimpleNamespace(weight=torch.ones(3))
        self.model = SimpleNamespace(norm_swiftkv=norm, upper=self.upper)

    @staticmethod
    def upper(hidden, positions, batch, pairs):
        assert pairs is None
        return 2 * hidden + positions[:, None]


@pytest.fixture
def contexts(monkeypatch):
    seen = []
    monkeypatch.setattr(
        tail_graphs,
        "vendor",
        SimpleNamespace(
            ShapeKey=vendor.ShapeKey,
            ForwardContext=lambda attn_backend: attn_backend,
            forward_context=lambda attention: seen.append(attention) or nullcontext(),
        ),
    )
    return seen


def forward(input_ids, positions, batch):
    return "logits"


def step(*positions, hidden="NULL"):
    return SimpleNamespace(
        batch_size=len(positions), positions=torch.tensor(positions),
        capture_hidden_mode=vendor.CaptureHiddenMode[hidden],
    )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_replay_is_the_upper_half_of_the_rows(rows, contexts):
    model = Model()
    runner = Runner(model)
    runner.capture(forward)
    for seed in (0, 1):  # nothing of the first is left in the second
        hidden = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
        positions = torch.arange(rows) + 10 * seed
        found = model.tail_graphs.run(step(*positions.tolist()), hidden)
        assert torch.equal(found, 2 * hidden + positions[:, None])
    assert contexts == [runner.attn_backend] * 3
    assert len(runner.warmed) == 3


def test_hidden_states_that_somebody_keeps_outlive_the_next_replay(contexts):
    """A draft head without overlap keeps them until the next step, and a copy to the host may be late."""
    model = Model()
    Runner(model).capture(forward)
    kept = model.tail_graphs.run(step(1, 2, hidden="LAST"), torch.ones(2, 3))
    model.tail_graphs.run(step(9, 9, hidden="LAST"), torch.zeros(2, 3))
    assert kept.tolist() == [[3] * 3, [4] * 3]


def test_more_rows_than_any_graph_has(contexts):
    model = Model()
    Runner(model).capture(forward)
    assert model.tail_graphs.run(step(1, 2, 3, 4, 5), torch.zeros(5, 3)) is None


def test_verify_steps_of_the_same_server_leave_them_alone(contexts):
    model = Model()
    plain, verify = Runner(model, algorithm="ARCTIC"), Runner(model, algorithm="ARCTIC", width=4)
    for runner in (plain, verify):
        runner.capture(forward)
    assert model.tail_graphs.runner is plain
    assert len(plain.backend.graphs) == 2 * len(verify.backend.graphs)


def test_a_second_capture_takes_over(contexts):
    model = Model()
    for _ in range(2):
        runner = Runner(model)
        runner.capture(forward)
        assert model.tail_graphs.runner is runner


@pytest.mark.parametrize("setting", [{"algorithm": "NGRAM"}, {"decode": "breakable"}])
def test_none_where_decode_has_no_such_graphs(setting, contexts):
    model = Model()
    runner = Runner(model, **setting)
    runner.capture(forward)
    assert model.tail_graphs is None
    assert len(runner.backend.graphs) == 3


def test_other_models_are_left_alone(contexts):
    runner = Runner(object())
    runner.capture(forward)
    assert len(runner.backend.graphs) == 3
