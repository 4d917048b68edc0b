"""KV slots that requests are given before a step."""

from types import SimpleNamespace

import pytest
import torch

algorithm = pytest.importorskip("speculative.sglang_worker.algorithm")
slots = pytest.importorskip("speculative.sglang_worker.slots")

RESERVE = 64  # tokens that two steps of 32 take


class Pool:
    """Counts what is handed out, page by page."""

    def __init__(self, free, page=1):
        self.free, self.page_size = free, page

    def available_size(self):
        return self.free


class Batch:
    """What is read of SGLang's `ScheduleBatch`, and what was done to it."""

    device = "cpu"

    def __init__(
        self,
        lengths,
        *,
        allocated=None,
        free=10**6,
        columns=1060,
        page=1,
        evictable=0,
        penalties=False,
        swa=False,
    ):
        self.spec_algorithm = object.__new__(algorithm.ChainAlgorithm)
        self.reqs = [
            SimpleNamespace(
                kv_committed_len=length, decode_batch_idx=0, kv=SimpleNamespace(kv_allocated_len=held)
            )
            for length, held in zip(lengths, allocated or lengths, strict=True)
        ]
        self.token_to_kv_pool_allocator = Pool(free, page)
        self.tree_cache = SimpleNamespace(evictable_size=lambda: evictable, supports_swa=lambda: swa)
        self.req_to_token_pool = SimpleNamespace(
            req_to_token=torch.zeros(len(lengths), columns, dtype=torch.int32)
        )
        self.req_pool_indices = torch.arange(len(lengths))
        self.sampling_info = SimpleNamespace(penalizer_orchestrator=SimpleNamespace(is_required=penalties))
        self.done = []

    def maybe_evict_swa(self):
        self.done.append("swa")

    def cumulate_penalty_output_tokens(self):
        self.done.append("penalties")

    def held(self):
        return [request.kv.kv_allocated_len for request in self.reqs]


@pytest.fixture(autouse=True)
def handed_out(monkeypatch):
    """Slots that were handed out, by call; SGLang's own function would write them into the rows."""
    calls = []

    def give(tree_cache, pool, *, reqs, cur_kv_lens, nxt_kv_lens, num_needed_tokens, **rest):
        before, after = cur_kv_lens.tolist(), nxt_kv_lens.tolist()
        assert before == [request.kv.kv_allocated_len for request in reqs] == rest["cur_kv_lens_cpu"].tolist()
        assert num_needed_tokens == sum(after) - sum(before)
        for request, length in zip(reqs, after, strict=True):
            request.kv.kv_allocated_len = length
        calls.append(num_needed_tokens)

    monkeypatch.setattr(slots.vendor, "alloc_for_spec_decode", give, raising=False)
    monkeypatch.setattr(slots.vendor, "get_alloc_reserve_per_decode", lambda: RESERVE, raising=False)
    return calls


def refuse(batch):
    raise AssertionError(batch)


def test_slots_are_handed_out_ahead_so_that_most_steps_need_none(handed_out):
    batch = Batch([5, 100])
    for _ in range(66):
        slots.around_prepare_for_decode(refuse, batch)
        for request in batch.reqs:
            assert request.kv.kv_allocated_len >= request.kv_committed_len + RESERVE
            request.kv_committed_len += 1
    assert handed_out == [2 * (RESERVE + slots.AHEAD), 2 * (slots.AHEAD + 1)]
    assert [request.decode_batch_idx for request in batch.reqs] == [66, 66]


@pytest.mark.parametrize("page", [1, 16])
def test_no_slot_is_behind_the_end_of_a_row(handed_out, page):
    columns = 1024 + 36
    batch = Batch([1000, 1023, 900], columns=columns, page=page)
    for _ in range(3):
        slots.around_prepare_for_decode(refuse, batch)
    assert batch.held() == [columns - columns % page] * 2 + [-(-(900 + RESERVE + slots.AHEAD) // page) * page]
    assert len(handed_out) == 1


def test_where_memory_is_short_nothing_is_handed_out_ahead(handed_out):
    rows, least = 4, 4 * slots.AHEAD * slots.SHARE
    for free, evictable, swa, ahead in (
        (least, 0, False, True),
        (least - 1, 0, False, False),
        (1, least - 1, False, True),
        (least, 10**6, True, False),  # slots of sliding windows may be short where others are not
    ):
        batch = Batch([10] * rows, free=free, evictable=evictable, swa=swa)
        slots.around_prepare_for_decode(refuse, batch)
        assert batch.held() == [10 + RESERVE + slots.AHEAD * ahead] * rows


def test_what_a_request_has_is_never_taken_back(handed_out):
    batch = Batch([10, 10], allocated=[500, 10])
    slots.around_prepare_for_decode(refuse, batch)
    assert batch.held() == [500, 10 + RESERVE + slots.AHEAD]


def test_penalties_and_windows_are_seen_to_as_in_sglangs_own(handed_out):
    batch = Batch([10], penalties=True)
    slots.around_prepare_for_decode(refuse, batch)
    assert batch.done == ["swa", "penalties"]


def test_other_algorithms_keep_sglangs_way(handed_out):
    batch, told = Batch([10]), []
    batch.spec_algorithm = object()
    slots.around_prepare_for_decode(told.append, batch)
    assert told == [batch]
    assert handed_out == []
    assert batch.reqs[0].decode_batch_idx == 0
