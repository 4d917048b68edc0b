"""The batch of the rows that go up, with SGLang's own batch class and no engine."""

from types import SimpleNamespace

import pytest
import torch

from arctic_sglang.compat import vendor
from swiftkv.models.tail import after_init_new, nothing_goes_up, tail_of


@pytest.fixture(scope="module")
def batch_of():
    """SGLang's batch of a prefill: chunks of 3, 1 and 4 rows behind prefixes of 0, 7 and 2."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch

    def make(starts=None, hidden="NULL", padding=0):
        lengths, prefixes = [3, 1, 4], [0, 7, 2]
        rows = sum(lengths) + padding
        return ForwardBatch(
            forward_mode=vendor.ForwardMode.EXTEND, batch_size=3, input_ids=torch.arange(rows) + 100,
            req_pool_indices=torch.tensor([4, 5, 6]), seq_lens=torch.tensor([3, 8, 6]), seq_lens_sum=17,
            out_cache_loc=torch.arange(rows) + 50, seq_lens_cpu=torch.tensor([3, 8, 6]),
            positions=torch.tensor([0, 1, 2, 7, 2, 3, 4, 5] + [0] * padding), extend_num_tokens=8,
            extend_seq_lens=torch.tensor(lengths, dtype=torch.int32),
            extend_prefix_lens=torch.tensor(prefixes, dtype=torch.int32),
            extend_start_loc=torch.tensor([0, 3, 4], dtype=torch.int32), extend_seq_lens_cpu=lengths,
            extend_prefix_lens_cpu=prefixes, extend_logprob_start_lens_cpu=starts or lengths,
            return_logprob=starts is not None, capture_hidden_mode=CaptureHiddenMode[hidden],
            sampling_info=SimpleNamespace(), num_token_non_padded_cpu=8, _attn_output=torch.zeros(8),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("padding", [0, 8])
def test_last_rows_look_like_a_decode_step(batch_of, padding):
    batch = batch_of(padding=padding)
    tail = tail_of(batch)
    assert tail.decodes
    assert tail.rows.tolist() == [2, 3, 7]
    assert tail.batch.forward_mode == vendor.ForwardMode.DECODE
    assert tail.batch.input_ids.tolist() == [102, 103, 107]
    assert tail.batch.positions.tolist() == [2, 7, 5]
    assert tail.batch.out_cache_loc.tolist() == [52, 53, 57]
    assert tail.batch.seq_lens.tolist() == [p + 1 for p in tail.batch.positions.tolist()]
    assert tail.batch.extend_seq_lens is None
    assert tail.batch._attn_output is None
    assert batch.extend_seq_lens is not None  # the step itself is left as it was


def test_rows_whose_logprobs_are_wanted_are_the_end_of_a_prefill(batch_of):
    tail = tail_of(batch_of(starts=[1, 1, 4]))
    assert not tail.decodes
    assert tail.rows.tolist() == [1, 2, 3, 7]
    batch = tail.batch
    assert batch.forward_mode == vendor.ForwardMode.EXTEND
    assert batch.positions.tolist() == [1, 2, 7, 5]
    assert batch.extend_seq_lens.tolist() == batch.extend_seq_lens_cpu == [2, 1, 1]
    assert batch.extend_prefix_lens.tolist() == batch.extend_prefix_lens_cpu == [1, 7, 5]
    assert batch.extend_start_loc.tolist() == [0, 2, 3]
    assert batch.extend_logprob_start_lens_cpu == [0, 1, 1]
    assert batch.extend_num_tokens == batch.num_token_non_padded_cpu == 4
    sums = [p + n for p, n in zip(batch.extend_prefix_lens_cpu, batch.extend_seq_lens_cpu, strict=True)]
    assert sums == batch.seq_lens.tolist()


def test_hidden_states_of_all_rows_keep_them_all_but_not_the_padding(batch_of):
    tail = tail_of(batch_of(hidden="FULL", padding=8))
    assert tail.rows.tolist() == list(range(8))
    assert tail.batch.extend_prefix_lens.tolist() == [0, 7, 2]
    assert tail_of(batch_of(hidden="LAST")).rows.tolist() == [2, 3, 7]


def note(batch, chunked, *requests, asked="NULL", **more):
    """As SGLang's batch of these requests is made, of which the one that asks for most hidden states asks for these."""
    mode = vendor.CaptureHiddenMode[asked]
    scheduled = SimpleNamespace(chunked_req=chunked, reqs=list(requests), return_hidden_states_mode=mode)
    after_init_new(batch, None, scheduled, **more)
    return batch


def test_a_server_that_may_return_hidden_states_sends_no_more_rows_up_for_those_who_ask_for_none(batch_of):
    """SGLang's batch says what the server may return, whatever its requests ask for."""
    one, other = object(), object()
    for hidden in ("LAST", "FULL"):
        tail = tail_of(note(batch_of(hidden=hidden), None, one, other))
        assert tail.decodes
        assert tail.rows.tolist() == [2, 3, 7]
        assert not tail.batch.capture_hidden_mode.need_capture()
        assert nothing_goes_up(note(batch_of(hidden=hidden), one, one))


def test_hidden_states_that_are_asked_for_come_as_sglang_counts_them(batch_of):
    """By the server's mode: where it is FULL, a request for the last state alone picks it from all rows."""
    one, other = object(), object()
    for asked in ("LAST", "FULL"):
        tail = tail_of(note(batch_of(hidden="FULL"), None, one, other, asked=asked))
        assert tail.rows.tolist() == list(range(8))
        assert tail.batch.capture_hidden_mode.is_full()
    assert tail_of(note(batch_of(hidden="LAST"), None, one, asked="LAST")).batch.capture_hidden_mode.is_last()
    # of a drafting worker, in the call and in what a step carries
    kept = note(batch_of(hidden="LAST"), one, one, capture_hidden_mode=vendor.CaptureHiddenMode.LAST)
    assert not nothing_goes_up(kept)
    assert tail_of(kept).batch.capture_hidden_mode.is_last()
    carried = batch_of(hidden="FULL")
    carried.spec_info = SimpleNamespace(capture_hidden_mode=vendor.CaptureHiddenMode.FULL)
    assert len(tail_of(note(carried, None, one)).rows) == 8


def test_decode_keeps_the_mode_that_its_graphs_were_captured_with(batch_of):
    batch = batch_of(hidden="FULL")
    batch.forward_mode = vendor.ForwardMode.DECODE
    assert note(batch, None, object()).capture_hidden_mode.is_full()


def test_nothing_goes_up_of_one_unfinished_prompt(batch_of):
    first, second = object(), object()

    def noted(batch, chunked, *requests, **more):
        return nothing_goes_up(note(batch, chunked, *requests, **more))

    assert not nothing_goes_up(batch_of())  # never noted: a captured graph's batch
    assert noted(batch_of(), first, first)
    assert not noted(batch_of(), None, first)  # the chunk ends its prompt
    assert not noted(batch_of(), first, first, second)  # another request is answered in this step
    assert not noted(batch_of(), first, second)
    assert noted(batch_of(starts=[3, 1, 4]), first, first)  # logprobs wanted, but none of this chunk
    assert not noted(batch_of(starts=[3, 0, 4]), first, first)
    assert not noted(batch_of(hidden="LAST"), first, first, asked="LAST")
