"""What a step leaves for the next: the last token of each request, and the hidden state it came from."""

import dataclasses
from typing import Any

import torch

from arctic_sglang.compat import vendor


@dataclasses.dataclass
class Relay(vendor.SpecInput):  # type: ignore[misc]
    """One row per request of a batch, in its order.

    With overlap SGLang stores the rows by request (`FutureMap`) and fills them in again before the next step:
    `future_indices` says whose they are, and batches are filtered and merged by it alone.

    Attributes:
        bonus_tokens: int64 [rows], the last accepted token, which no forward has seen yet.
        hidden_states: [rows, hidden size] in the model's dtype, final-normed, of the row that `bonus_tokens` was
            sampled from; None without a draft head, or if `kept` has them.
        kept: [size of the request pool, hidden size], of all requests. Read by `states`, and only then: most steps do
            without where drafts seldom pay.
        future_indices: int64 [rows], indices of SGLang's request pool; None without overlap.
    """

    bonus_tokens: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    future_indices: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    # Read by SGLang of every speculative input; trees and sparse attention fill them, paths do not.
    topk_p: None = None
    topk_index: None = None
    draft_probs: None = None
    dsa_topk_indices: None = None
    future_dsa_topk_indices_available: bool = False
    num_tokens_per_req: int = 1
    num_tokens_for_logprob_per_req: int = 1

    def __post_init__(self) -> None:
        super().__init__(vendor.SpecInputType.EAGLE_DRAFT)

    def states(self) -> torch.Tensor | None:
        """`hidden_states`, wherever they are."""
        return self.hidden_states if self.kept is None else self.kept[self.future_indices]

    def filter_batch(self, new_indices: torch.Tensor, new_indices_cpu: list[int] | None = None) -> None:
        """Keeps the rows of the requests that stay."""
        if self.future_indices is not None:
            self.future_indices = self.future_indices[new_indices]
            return
        for name in ("bonus_tokens", "hidden_states"):
            rows = getattr(self, name)
            if rows is not None:
                setattr(self, name, rows[new_indices])

    def merge_batch(self, spec_info: Any) -> None:
        """Adds another batch's rows behind these."""
        if self.future_indices is not None:
            self.future_indices = torch.cat([self.future_indices, spec_info.future_indices])
            return
        for name in ("bonus_tokens", "hidden_states"):
            rows = getattr(self, name)
            if rows is not None:
                setattr(self, name, torch.cat([rows, getattr(spec_info, name)]))


# On a tensor of new lengths: of which rows the host knows them, and what they are.
_KNOWN = "_arctic_known"


def known_lengths(
    lengths: torch.Tensor, rows: torch.Tensor | None, on_host: torch.Tensor | None
) -> torch.Tensor:
    """`lengths`, with what the host knows of them for `future_map` to find.

    Args:
        lengths: integer [requests], on the device.
        rows: int64 [requests], of SGLang's request pool, on the host; None: nobody asks.
        on_host: integer [requests], the same lengths; None: only the device knows.
    """
    if rows is not None:
        setattr(lengths, _KNOWN, (rows, on_host))
    return lengths


def future_map(*args: Any, **kwargs: Any) -> Any:
    """SGLang's `FutureMap`, which reads a `Relay` back on every device.

    Args:
        args: of SGLang's class.
        kwargs: of SGLang's class.
    """

    class Futures(vendor.FutureMap):  # type: ignore[misc]
        """Knows lengths on the host where only the host's own steps changed them.

        Some attention backends plan on the host with the lengths of all requests. SGLang reads them back from the
        device, and so waits for the step in flight to end; after a plain step they are one more than before.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._on_host = torch.full((len(self.new_seq_lens_buf),), -1, dtype=torch.int64)

        def publish(self, future_indices: torch.Tensor, new_seq_lens: torch.Tensor, *rest: Any) -> None:
            super().publish(future_indices, new_seq_lens, *rest)
            known = getattr(new_seq_lens, _KNOWN, None)
            if known is not None and self.needs_cpu_seq_lens:
                rows, lengths = known
                self._on_host[rows] = -1 if lengths is None else lengths.to(torch.int64)

        def resolve_seq_lens_cpu(self, batch: Any) -> None:
            relay = batch.spec_info
            indices = None if relay is None else relay.future_indices
            if indices is None or not self.needs_cpu_seq_lens or self.publish_ready is None:
                super().resolve_seq_lens_cpu(batch)
                return
            lengths = self._on_host[batch.req_pool_indices_cpu]
            if (lengths < 0).any():
                super().resolve_seq_lens_cpu(batch)
                self._on_host[batch.req_pool_indices_cpu] = batch.seq_lens_cpu.to(torch.int64)
                return
            self.publish_ready.wait()
            batch.seq_lens = self.new_seq_lens_buf[indices]
            batch.seq_lens_cpu = lengths.to(self.new_seq_lens_buf.dtype)
            batch.seq_lens_sum = int(lengths.sum())

        def _resolve_spec_extras(self, batch: Any) -> None:
            # SGLang's own marks the indices as used on a stream, which a CPU does not have; the scheduler keeps
            # them for two steps anyway.
            relay = batch.spec_info
            if relay is None or relay.future_indices is None or len(relay.future_indices) == 0:
                return
            relay.bonus_tokens = self.output_tokens_buf[relay.future_indices]
            if self.need_hidden_states:
                relay.kept = self.hidden_states_buf

    return Futures(*args, **kwargs)
