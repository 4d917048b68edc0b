"""The worker's parts that need no engine: what is relayed, sizes of steps, ranks that agree, graphs captured anew."""

from types import SimpleNamespace

import pytest
import torch

from arctic_sglang.compat import vendor
from speculative.sglang_worker import relay, verify, worker
from speculative.sglang_worker.algorithm import ChainAlgorithm
from speculative.sglang_worker.widths import Widths
from speculative.sglang_worker.worker import SpeculativeWorker

HIDDEN = 4


@pytest.fixture
def futures(monkeypatch):
    """SGLang's relay between steps; with our algorithms it keeps hidden states if the first step has some."""
    from sglang.srt.managers.overlap_utils import RelayPayload
    from sglang.srt.speculative import spec_utils

    monkeypatch.setattr(spec_utils, "spec_need_hidden_states", lambda server_args=None: True)
    pool = SimpleNamespace(req_to_token=torch.zeros(8, 64), req_generation=None)
    algorithm = ChainAlgorithm("SUFFIX", None, supports_overlap=True)
    kept = relay.future_map("cpu", algorithm, pool, needs_cpu_seq_lens=False)

    def stash(left):
        rows = torch.arange(1, 1 + len(left.bonus_tokens))
        kept.stash(rows, RelayPayload.from_draft_input(left))

    return SimpleNamespace(kept=kept, stash=stash)


def prefilled(states, lengths, hidden, *, asked=False, modes=None):
    """Prefills as with a model that gives these states; notes in `modes` whose were asked for."""
    out = SimpleNamespace(
        next_token_ids=torch.arange(len(lengths)), logits_output=SimpleNamespace(hidden_states=states)
    )
    batch = SimpleNamespace(
        extend_lens=lengths, seq_lens=torch.tensor(lengths), req_pool_indices_cpu=torch.arange(len(lengths)),
        seq_lens_cpu=torch.tensor(lengths), return_hidden_states=asked,
    )  # fmt: skip

    def forward_batch_generation(batch, *, capture_hidden_mode):
        modes is None or modes.append(capture_hidden_mode)
        return out

    model = SimpleNamespace(forward_batch_generation=forward_batch_generation)
    return verify.prefill(batch, model, hidden).next_draft_input


def test_a_head_gets_the_state_of_each_prompts_last_token(futures):
    every = torch.arange(8.0)[:, None].expand(8, HIDDEN)
    futures.stash(
        prefilled(every, [3, 5], True)
    )  # hidden states were asked for: those of all tokens are there
    assert futures.kept.hidden_states_buf[1:3, 0].tolist() == [2, 7]
    futures.stash(prefilled(every[:2], [3, 5], True))
    assert futures.kept.hidden_states_buf[1:3, 0].tolist() == [0, 1]
    futures.stash(prefilled(every[:2], [1, 1], True))
    assert futures.kept.hidden_states_buf[1:3, 0].tolist() == [0, 1]


def test_a_head_asks_for_its_states_itself():
    """A SwiftKV model leaves out what nobody asks for; where a request asks, SGLang counts by its own mode."""
    modes = []
    for hidden, asked in ((True, False), (True, True), (False, False), (False, True)):
        prefilled(torch.zeros(2, HIDDEN), [3, 5], hidden, asked=asked, modes=modes)
    assert modes == [vendor.CaptureHiddenMode.LAST, None, None, None]


@pytest.mark.parametrize("rows", [2, 8])
def test_without_a_head_no_state_is_relayed(futures, rows):
    """A wide step would have none to relay either."""
    futures.stash(prefilled(torch.zeros(rows, HIDDEN), [3, 5], False))
    futures.stash(relay.Relay(torch.zeros(2, dtype=torch.int64), None))
    assert not futures.kept.need_hidden_states


def widths(*captured, own=()):
    made = object.__new__(Widths)
    shape = SimpleNamespace
    made._shapes = {1: shape(batches=own)} | {width: shape(batches=own and (1, 2)) for width in captured}
    return made


def test_steps_that_were_not_timed_are_no_larger_than_those_that_are():
    found = widths(2, 8, 32).sizes(400)
    assert found[1][-1] == found[2][-1] == 256
    assert (found[8][-1], found[32][-1]) == (64, 16)  # 512 tokens
    assert widths(8, 32).sizes(3) == {1: (1, 2, 3), 8: (1, 2, 3), 32: (1, 2)}
    assert widths(8).sizes(80)[8][-1] == 16  # 160 tokens
    assert widths(8).sizes(80)[1][-2:] == (64, 80)
    assert widths(8, own=(1, 2, 4)).sizes(400) == {1: (1, 2, 4), 8: (1, 2)}


def test_a_guessed_table_has_those_steps_alone():
    made = object.__new__(SpeculativeWorker)
    made.device, made._widths = "cuda", widths(2, 8, 32)
    made._runner = SimpleNamespace(max_running_requests=300)
    table = made._cost_table({})
    assert table.cost(256, 1) == 256 + 256
    assert table.cost(64, 8) == 256 + 512
    assert {table.cost(65, 8), table.cost(17, 32), table.cost(257, 1)} == {float("inf")}
    assert made._cost_table({(1, 1): 0.5, (1, 2): 0.75}).cost(1, 2) == 0.75


def test_graphs_are_captured_anew_with_sglangs(monkeypatch):
    built = []

    class Noted:
        def __init__(self, runner):
            assert not hasattr(made, "_widths")  # memory for both at once there may not be
            built.append(runner)

        def build(self, widths, hidden):
            built.append((widths, hidden))

    monkeypatch.setattr(worker, "Widths", Noted)
    made = object.__new__(SpeculativeWorker)
    made._runner, made._head, made._widths = "runner", None, "old"
    made._settings = SimpleNamespace(widths=(2, 4))
    assert made.update_weights_from_disk(SimpleNamespace(recapture_cuda_graph=False))[0]
    assert made._widths == "old"
    assert made.update_weights_from_disk(SimpleNamespace(recapture_cuda_graph=True))[0]
    assert built == ["runner", ((2, 4), False)]
    assert isinstance(made._widths, Noted)


def test_ranks_are_told_what_rank_0_read(monkeypatch):
    sent = {}

    def broadcast(objects, src, group):
        assert (src, group) == (4, "cpu")
        if sent:
            objects[:] = sent["by rank 0"]
        else:
            sent["by rank 0"] = list(objects)

    group = SimpleNamespace(world_size=2, rank_in_group=0, ranks=[4, 5], cpu_group="cpu")
    monkeypatch.setattr(worker.vendor, "get_tp_group", lambda: group, raising=False)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assert worker._told(lambda: 7) == 7
    group.rank_in_group = 1
    assert worker._told(lambda: 8) == 7
    sent.clear()
    group.rank_in_group = 0

    def damaged():
        raise ValueError("the file is damaged")

    for rank in (0, 1):
        group.rank_in_group = rank
        with pytest.raises(ValueError, match="damaged"):
            worker._told(damaged)
    group.world_size = 1
    assert worker._told(lambda: 9) == 9
