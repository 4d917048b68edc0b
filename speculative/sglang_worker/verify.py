"""A step's forward, and what is accepted of it.

`decode` is a step without drafts, SGLang's plain decode; `verify` one of any width. Both sample every row with
SGLang's own sampler, so temperature, top-k, top-p, min-p, seeds and grammars mean what they mean without
speculation, on every device.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from arctic_sglang.compat import vendor
from speculative.chain import Drafted, Places, accept, chain
from speculative.sglang_worker.relay import Relay, known_lengths

Barrier = Callable[[], None] | None
# Fields of SGLang's sampling parameters with one row per request.
_OF_LOGITS = ("acc_additive_penalties", "acc_scaling_penalties", "logit_bias")
_OF_SAMPLING = ("temperatures", "top_ps", "top_ks", "min_ps", "sampling_seed")


def decode(batch: Any, worker: Any, relay: Relay, hidden: bool, barrier: Barrier) -> Any:
    """One token for every request, through the runner's own decode graphs.

    Args:
        batch: SGLang's `ScheduleBatch`, isolated: what is set on it is undone by the scheduler.
        worker: SGLang's worker of the model.
        relay: what the step before left.
        hidden: whether the hidden states of the last tokens are wanted.
        barrier: advances grammars over the tokens of the step before; None where they are up to date.

    Returns:
        SGLang's `GenerationBatchResult`.
    """
    runner, seq_lens = worker.model_runner, batch.seq_lens
    batch.spec_info = None
    batch.input_ids = relay.bonus_tokens.to(torch.int64)
    # SGLang has reserved the slots.
    batch.out_cache_loc = runner.req_to_token_pool.req_to_token[batch.req_pool_indices, seq_lens].to(
        torch.int64
    )
    batch.seq_lens = seq_lens + 1
    if batch.seq_lens_cpu is not None:
        batch.seq_lens_cpu = batch.seq_lens_cpu + 1
    batch.seq_lens_sum = None
    forward_batch = vendor.ForwardBatch.init_new(batch, runner, return_hidden_states_before_norm=False)
    out = worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)
    if batch.has_grammar and barrier is not None:
        barrier()
    # Ranks sample alike, or not at all alike: SGLang takes that for granted of every plain step.
    tokens = runner.sample(out.logits_output, forward_batch)
    _stack_logprobs(out.logits_output, batch)
    lengths = torch.ones(len(tokens), dtype=torch.int32)  # on the host, where SGLang wants them
    states = out.logits_output.hidden_states if hidden else None
    after = known_lengths(batch.seq_lens, batch.req_pool_indices_cpu, batch.seq_lens_cpu)
    return _result(out, forward_batch, tokens, lengths, after, 1, Relay(tokens, states))


def verify(batch: Any, worker: Any, drafted: Drafted, hidden: bool, barrier: Barrier) -> Any:
    """Checks a draft for every request in one forward.

    Args:
        batch: SGLang's `ScheduleBatch`, isolated, with what the step before left as its `spec_info`.
        worker: SGLang's worker of the model; its runner has the attention backend and graphs of this width.
        drafted: the drafts.
        hidden: whether the hidden states of the last tokens are wanted.
        barrier: as in `decode`.

    Returns:
        SGLang's `GenerationBatchResult`.
    """
    runner, seq_lens, width = worker.model_runner, batch.seq_lens, drafted.width
    last = runner.model_config.context_len - 1
    places = Places(seq_lens, batch.req_pool_indices, runner.req_to_token_pool.req_to_token, last)
    tokens, slots, positions = chain(batch.spec_info.bonus_tokens, drafted, places)
    batch.input_ids, batch.out_cache_loc, positions = tokens.flatten(), slots.flatten(), positions.flatten()
    forward_batch = _forward_batch(batch, runner, positions, width, hidden)
    tree = vendor.GrammarTree.from_linear_chain(tokens) if batch.has_grammar else None
    out = worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)
    logits = out.logits_output
    mask = None
    if tree is not None:
        mask = vendor.build_grammar_vocab_mask(
            reqs=batch.reqs,
            tree=tree,
            sampling_info=batch.sampling_info,
            device=tokens.device,
            barrier=barrier,
        )
    sampled = _sample(runner, logits, batch, positions, width, mask)
    accepted = accept(sampled.view(-1, width), tokens, drafted.packed, seq_lens)
    if batch.return_logprob:
        index = torch.arange(tokens.numel(), device=tokens.device).view(-1, width)
        vendor.compute_spec_v2_logprobs(batch, logits, sampled, index, width - 1)
    states = logits.hidden_states[accepted.rows] if hidden else None
    return _result(
        out, forward_batch, sampled, accepted.lengths,
        known_lengths(accepted.cached, batch.req_pool_indices_cpu, None), width, Relay(accepted.last, states),
    )  # fmt: skip


def prefill(batch: Any, worker: Any, hidden: bool) -> Any:
    """A prefill step, and what it leaves for the first decode step.

    Args:
        batch: SGLang's `ScheduleBatch`.
        worker: SGLang's worker of the model.
        hidden: whether the hidden states of the last tokens are wanted.
    """
    lengths = batch.extend_lens
    # SwiftKV models capture hidden states of a prefill for those alone who say that they want them.
    mode = vendor.CaptureHiddenMode.LAST if hidden and not batch.return_hidden_states else None
    out = worker.forward_batch_generation(batch, capture_hidden_mode=mode)
    out.new_seq_lens = known_lengths(batch.seq_lens, batch.req_pool_indices_cpu, batch.seq_lens_cpu)
    states = out.logits_output.hidden_states if hidden else None
    if states is not None and len(states) != len(lengths):  # of all tokens, as a request wants them
        ends = torch.tensor(lengths).cumsum(0) - 1
        states = states[ends.to(states.device, non_blocking=True)]
    out.next_draft_input = Relay(out.next_token_ids, states)
    return out


def _forward_batch(batch: Any, runner: Any, positions: torch.Tensor, width: int, hidden: bool) -> Any:
    mode = (
        vendor.CaptureHiddenMode.FULL
        if hidden or batch.return_hidden_states
        else vendor.CaptureHiddenMode.NULL
    )
    batch.spec_info = chain_input(batch.input_ids, positions, width, mode)
    batch.forward_mode = vendor.ForwardMode.TARGET_VERIFY
    return vendor.ForwardBatch.init_new(
        batch, runner, capture_hidden_mode=mode, return_hidden_states_before_norm=False
    )


def chain_input(tokens: torch.Tensor | None, positions: torch.Tensor | None, width: int, mode: Any) -> Any:
    """SGLang's form of a step that verifies one path per request, with causal attention."""
    return vendor.DFlashVerifyInput(
        draft_token=tokens,
        positions=positions,
        draft_token_num=width,
        custom_mask=None,
        capture_hidden_mode=mode,
    )


def _sample(
    runner: Any, logits: Any, batch: Any, positions: torch.Tensor, width: int, mask: Any
) -> torch.Tensor:
    """A token for every row: [rows * width]."""
    info = batch.sampling_info
    # The likeliest token needs no temperature, and leaving four small copies out is time that the host has not.
    needed = _OF_LOGITS if info.is_all_greedy else _OF_LOGITS + _OF_SAMPLING
    repeated = {
        name: value.repeat_interleave(width, dim=0)
        for name in needed
        if (value := getattr(info, name, None)) is not None
    }
    every = dataclasses.replace(
        info, **repeated, grammars=None, grammar_mask=mask, penalizer_orchestrator=None,
        has_custom_logit_processor=False, return_sampling_masks=None,
    )  # fmt: skip
    output = logits
    every.apply_logits_bias(logits.next_token_logits)
    if batch.return_logprob and not info.is_all_greedy:
        # The sampler turns its logits into probabilities in place; the logprobs are read from them afterwards.
        output = dataclasses.replace(logits, next_token_logits=logits.next_token_logits.clone())
    sampled = runner.sampler(output, every, False, [], [], positions)
    _agree(sampled, info)
    return sampled


def _agree(tokens: torch.Tensor, info: Any) -> None:
    """Makes rank 0's samples everybody's: the next step's width follows from them, and must be the same."""
    group = vendor.get_tp_group()
    if group.world_size > 1 and not info.is_all_greedy:
        group.broadcast(tokens, src=0)


def _stack_logprobs(logits: Any, batch: Any) -> None:
    # SGLang reads the logprobs of a speculative step as [rows, tokens].
    if batch.return_logprob and logits.next_token_logprobs is not None:
        logits.next_token_logprobs = logits.next_token_logprobs.reshape(-1, 1)


def _result(
    out: Any, forward_batch: Any, tokens: torch.Tensor, lengths: torch.Tensor, seq_lens: torch.Tensor, width: int,
    relay: Relay,
) -> Any:  # fmt: skip
    out.next_token_ids = tokens
    out.accept_lens = lengths
    out.new_seq_lens = seq_lens
    out.speculative_num_draft_tokens = width
    out.next_draft_input = relay
    # Tensors of the step are read on the device after this returns.
    out.extra_keep_alive_refs = [forward_batch]
    return out
