"""The batch of the rows that go up."""

import dataclasses
from typing import Any

import torch

from arctic_sglang.compat import vendor
from swiftkv.rows import Kept, kept_rows

UNFINISHED = "arctic_swiftkv_unfinished"


@dataclasses.dataclass(frozen=True, slots=True)
class Tail:
    """Rows of a step and the step that they make.

    Attributes:
        rows: indices into the step's rows, int64.
        batch: SGLang's batch of these rows alone.
        decodes: whether the batch looks like a decode step: one row a request, everything before it in the
            cache. Else it is the end of a prefill.
    """

    rows: torch.Tensor
    batch: Any
    decodes: bool


def after_init_new(batch: Any, cls: type, schedule_batch: Any, *args: Any, **kwargs: Any) -> None:
    """After `ForwardBatch.init_new`: notes whether no request of a prefill step ends its prompt in it.

    The note hangs on the sampling information, the one object of a step that SGLang's graph runners hand
    on as it is.

    A server that may return hidden states captures them in every step, for its graphs' sake; of a prefill they are
    rows that would have to go up, so they are captured where somebody asks for them alone. Then as SGLang says: it
    counts the rows that come back by the server's mode, not by the requests'.
    """
    if kwargs.get("capture_hidden_mode") is None and batch.forward_mode.is_extend_without_speculative():
        modes = (
            schedule_batch.return_hidden_states_mode,
            getattr(batch.spec_info, "capture_hidden_mode", None),
        )
        if not any(mode is not None and mode.need_capture() for mode in modes):
            batch.capture_hidden_mode = vendor.CaptureHiddenMode.NULL
    if batch.sampling_info is not None:
        chunked = schedule_batch.chunked_req
        only = schedule_batch.reqs[0] if len(schedule_batch.reqs) == 1 else None
        setattr(batch.sampling_info, UNFINISHED, chunked is not None and chunked is only)


def nothing_goes_up(batch: Any) -> bool:
    """Whether the step is one chunk of a longer prompt and nobody reads anything of it."""
    if not getattr(batch.sampling_info, UNFINISHED, False) or batch.capture_hidden_mode.need_capture():
        return False
    return _kept(batch) is None


def tail_of(batch: Any) -> Tail:
    """The rows of a prefill step that go up, and their batch."""
    kept = _kept(batch)
    if kept is None:
        return _decode_tail(batch)
    return _extend_tail(batch, kept)


def _kept(batch: Any) -> Kept | None:
    return kept_rows(
        batch.extend_seq_lens_cpu,
        batch.extend_logprob_start_lens_cpu if batch.return_logprob else None,
        all_rows=batch.capture_hidden_mode.is_full(),
    )


def _gathered(batch: Any, rows: torch.Tensor, **changes: Any) -> Any:
    return dataclasses.replace(
        batch,
        input_ids=batch.input_ids[rows],
        positions=batch.positions[rows],
        out_cache_loc=batch.out_cache_loc[rows],
        num_token_non_padded_cpu=rows.shape[0],
        spec_info=None,
        input_embeds=None,
        forward_metadata_ready=False,
        _attn_output=None,  # a buffer of the lower half's rows
        **changes,
    )


def _decode_tail(batch: Any) -> Tail:
    """One row a request. A chunk's `seq_lens` count it already, as a decode step's would."""
    rows = torch.cumsum(batch.extend_seq_lens, dim=0) - 1
    changed = _gathered(
        batch, rows, forward_mode=vendor.ForwardMode.DECODE, extend_num_tokens=None, extend_seq_lens=None,
        extend_prefix_lens=None, extend_start_loc=None, extend_prefix_lens_cpu=None, extend_seq_lens_cpu=None,
        extend_logprob_start_lens_cpu=None,
    )  # fmt: skip
    return Tail(rows, changed, decodes=True)


def _extend_tail(batch: Any, kept: Kept) -> Tail:
    """The end of each chunk, with what comes before it as the prefix.

    A chunk without a prefix that is kept whole stays so: some kernels tell the two cases apart.
    """
    device = batch.extend_seq_lens.device
    spans, start = [], 0
    for skip, length in zip(kept.skipped, kept.lengths, strict=True):
        spans.append(torch.arange(start + skip, start + skip + length))
        start += skip + length
    prefixes = [p + skip for p, skip in zip(batch.extend_prefix_lens_cpu, kept.skipped, strict=True)]

    def on_device(values: Any, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(values, dtype=like.dtype).to(device, non_blocking=True)

    lengths = on_device(kept.lengths, batch.extend_seq_lens)
    rows = torch.cat(spans).to(device, non_blocking=True)
    changed = _gathered(
        batch, rows, forward_mode=vendor.ForwardMode.EXTEND, extend_num_tokens=rows.shape[0],
        extend_seq_lens=lengths, extend_prefix_lens=on_device(prefixes, batch.extend_prefix_lens),
        extend_start_loc=(torch.cumsum(lengths, 0) - lengths).to(batch.extend_start_loc.dtype),
        extend_prefix_lens_cpu=prefixes, extend_seq_lens_cpu=list(kept.lengths),
        extend_logprob_start_lens_cpu=list(kept.logprob_starts),
    )  # fmt: skip
    return Tail(rows, changed, decodes=False)
