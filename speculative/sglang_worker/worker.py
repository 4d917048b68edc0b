"""The worker that SGLang's scheduler calls for every step."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arctic_sglang import env
from arctic_sglang.compat import vendor
from speculative import chain
from speculative.chain import Drafted
from speculative.cost import CostTable
from speculative.metrics import Collectors, Statistics
from speculative.pace import Kind, Pace
from speculative.policy import Policy
from speculative.requests import Requests
from speculative.settings import SpeculationSettings
from speculative.sglang_worker import verify
from speculative.sglang_worker.drafting import Drafting, Mark, Moment, Plan
from speculative.sglang_worker.head import Head
from speculative.sglang_worker.memory import Memory
from speculative.sglang_worker.staging import Staging
from speculative.sglang_worker.widths import Widths
from speculative.suffix import SuffixProposer, SuffixSettings

logger = logging.getLogger(__name__)
# What the GPU is taken to stand idle for when a step waits for the one before: reading its tokens, asking the
# index, launching. It is learnt as soon as there are such steps.
WAIT_SECONDS = 5e-4
# Tokens of a step whose computation takes as long as reading the weights: a guess where steps cannot be timed.
TOKENS_FOR_WEIGHTS = {"cpu": 16, "gpu": 256}
# Steps between two updates of what was learnt: one rank, and several, which have to agree.
UPDATE_STEPS, AGREE_STEPS = 16, 64
# Tokens of a prompt's end that are remembered with its response, so that the same question is known from its
# first token on.
PROMPT_TAIL = 8


class SpeculativeWorker(vendor.BaseSpecWorker):  # type: ignore[misc]
    """Drafts from a suffix index, a draft head or both, verified by the model.

    The signature is SGLang's: `server_args` is a copy made for this worker, `ps` says which rank this is.
    """

    def __init__(self, server_args: Any, gpu_id: int, ps: Any, nccl_port: int, target_worker: Any) -> None:
        super().__init__()
        self.server_args = server_args
        self.device = server_args.device
        self._target_worker = target_worker
        self._runner = target_worker.model_runner
        self._rank = ps.tp_rank
        self._settings = SpeculationSettings.of(vars(server_args))
        self._head: Head | None = None
        if self._settings.head_path is not None:
            self._head = Head.load(self._settings, server_args, self._runner)
        self._proposer = SuffixProposer(suffix_settings(server_args, self._settings.width - 1))

    @property
    def draft_worker(self) -> None:
        """None: no draft model of SGLang's kind."""
        return

    def alloc_memory_pool(self, **pools: Any) -> None:
        """Takes the model's pools; nothing of its own is cached on the device.

        Args:
            pools: SGLang's pools, by name.
        """
        self.req_to_token_pool = pools["req_to_token_pool"]
        self.token_to_kv_pool_allocator = pools["token_to_kv_pool_allocator"]

    def init_attention_backends(self) -> None:
        """Nothing: the backends of verify steps are made with their graphs."""

    def init_cuda_graphs(self) -> None:
        """Captures every width, measures what steps cost, and sets up the policy with it."""
        settings, runner = self._settings, self._runner
        self._proposer.warm()
        args = self.server_args
        self._memory = Memory(
            self._proposer, args.suffix_cache_path, args.served_model_name, writes=self._rank == 0, told=_told
        )
        self._capture()
        measured = self._widths.measure()
        table = self._cost_table(measured)
        rows = runner.max_running_requests
        self._staging = Staging(rows, settings.width, self.device)
        self._warm()
        head_seconds = self._head_seconds(rows)
        self._statistics = Statistics(self._widths.available, log=self._log(), collectors=self._collectors())
        model = runner.model_config
        requests = Requests(self._proposer, settings.width - 1, model.context_len, model.vocab_size)
        self._requests = requests
        self._drafting = Drafting(
            requests, self._policy(table), suffix=settings.suffix, head_seconds=head_seconds,
            **self._clock(guessed=not measured),
            alone=vendor.get_tp_group().world_size == 1, statistics=self._statistics,
        )  # fmt: skip

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, grammar_barrier: Any = None
    ) -> Any:
        """Runs a step.

        Args:
            batch: SGLang's `ScheduleBatch`.
            on_publish: takes the requests' new lengths as soon as they are on the device.
            grammar_barrier: advances grammars over the step before.

        Returns:
            SGLang's `GenerationBatchResult`.
        """
        prefill = batch.forward_mode.is_extend() or batch.is_extend_in_batch
        if prefill:
            self._requests.sweep()
            result = verify.prefill(batch, self._target_worker, self._head is not None)
        else:
            result = self._decode(batch, grammar_barrier)
        if on_publish is not None:
            on_publish(result.new_seq_lens)
        self._drafting.launched(batch, result, prefill=prefill)
        self._proposer.work()  # while the device runs the step
        return result

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """Learns what was accepted, when SGLang has it on the host.

        Args:
            num_correct_drafts_per_req: draft tokens accepted, by row of the step.
            batch_size: rows.
        """
        self._drafting.verified(num_correct_drafts_per_req)

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """Gives the request's slot back.

        Args:
            rid: the request.
            natural_stop: whether it ended by a stop token.
        """
        self._requests.finish(rid)
        if self._requests.idle():
            self._memory.idle()
            self._statistics.collect()

    def clear_cache_pool(self) -> None:
        """Forgets the responses of earlier requests, with SGLang's own cache."""
        self._requests.sweep()
        self._proposer.clear()

    def update_weights_from_tensor(self, recv_req: Any) -> tuple[bool, str]:
        """New weights for the model; the head keeps its own."""
        return self._target_worker.update_weights_from_tensor(recv_req)

    def update_weights_from_disk(self, recv_req: Any) -> tuple[bool, str]:
        """The scheduler updates the model itself; the head keeps its weights. Graphs are captured anew if its were.

        Args:
            recv_req: SGLang's request.
        """
        if recv_req.recapture_cuda_graph:
            self._capture()
        return True, "The draft head keeps its weights."

    def update_weights_from_ipc(self, recv_req: Any) -> tuple[bool, str]:
        """Nothing, as for `update_weights_from_disk`."""
        return True, "The draft head keeps its weights."

    def _decode(self, batch: Any, barrier: Any) -> Any:
        relay = batch.spec_info
        plan = self._drafting.plan(batch)
        if plan.width == 1:
            result = verify.decode(batch, self._target_worker, relay, self._head is not None, barrier)
        else:
            drafted = self._drafted(plan, relay)
            with self._widths.use(plan.width):
                result = verify.verify(batch, self._target_worker, drafted, self._head is not None, barrier)
        # On the host already. SGLang else counts every step as one of the widest drafts.
        result.cap_lens = torch.from_numpy(1 + np.minimum(plan.picked.lengths, plan.width - 1))
        return result

    def _drafted(self, plan: Plan, relay: Any) -> Drafted:
        heads = self._head is not None and plan.kind is Kind.HEAD
        packed = self._staging.put(plan)  # under way while the head drafts
        return Drafted(packed, self._head.draft(relay) if heads and self._head is not None else None)

    def _capture(self) -> None:
        vars(self).pop("_widths", None)  # the graphs that are there go before others are captured
        self._widths = Widths(self._runner)
        self._widths.build(self._settings.widths, hidden=self._head is not None)

    def _warm(self) -> None:
        head, table = self._head is not None, self._runner.req_to_token_pool.req_to_token
        chain.warm(table, self._settings.width, head=head, sampled=(torch.int64, torch.int32))

    def _log(self) -> Callable[[str], None] | None:
        return logger.info if self._rank == 0 else None

    def _collectors(self) -> Collectors | None:
        args = self.server_args
        if not args.enable_metrics or (self._rank and not args.enable_metrics_for_all_schedulers):
            return None
        return Collectors({"model_name": args.served_model_name, "tp_rank": str(self._rank)})

    def _head_seconds(self, rows: int) -> float:
        """Seconds of the head's draft; 0 without a head."""
        return float(_agreed(np.array([self._head.prepare(rows)]))[0]) if self._head is not None else 0.0

    def _cost_table(self, measured: dict[tuple[int, int], float]) -> CostTable:
        if not measured:
            constant = float(TOKENS_FOR_WEIGHTS["cpu" if self.device == "cpu" else "gpu"])
            sizes = self._widths.sizes(self._runner.max_running_requests)
            measured = {(rows, width): constant + rows * width for width, of in sizes.items() for rows in of}
        return CostTable(measured)

    def _policy(self, table: CostTable) -> Policy:
        settings, head = self._settings, self._head.tokens if self._head is not None else 0
        return Policy(
            table, max_batch=settings.max_batch, longest=settings.width - 1, head=head, bar=settings.bar
        )

    def _mark(self) -> Mark:
        if self.device == "cpu":
            return Moment()
        event = torch.get_device_module(self.device).Event(enable_timing=True)
        event.record()
        return event

    def _clock(self, *, guessed: bool) -> dict[str, Any]:
        """What `Drafting` times steps with."""
        return {} if env.untimed() else {"pace": self._pace(guessed=guessed), "mark": self._mark}

    def _pace(self, *, guessed: bool) -> Pace:
        if vendor.get_tp_group().world_size > 1:
            return Pace(WAIT_SECONDS, guessed=guessed, every=AGREE_STEPS, agree=_agreed)
        return Pace(WAIT_SECONDS, guessed=guessed, every=UPDATE_STEPS)


def _agreed(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank 0's times: ranks must choose the same widths, so all of them go by its clock."""
    group = vendor.get_tp_group()
    if group.world_size == 1 or not seconds.size:
        return seconds
    told = torch.from_numpy(np.ascontiguousarray(seconds))
    torch.distributed.broadcast(told, src=group.ranks[0], group=group.cpu_group)
    return told.numpy()


def _told(read: Callable[[], Any]) -> Any:
    """What `read` says on rank 0, at every rank, which must draft alike; raises there what it raises."""
    group = vendor.get_tp_group()
    if group.world_size == 1:
        return read()
    told: list[Any] = [None]
    if group.rank_in_group == 0:
        try:
            told = [read()]
        except (OSError, ValueError) as error:
            told = [error]
    torch.distributed.broadcast_object_list(told, src=group.ranks[0], group=group.cpu_group)
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]


def suffix_settings(args: Any, longest: int) -> SuffixSettings:
    """The suffix index's settings, as the flags say.

    Args:
        args: SGLang's arguments with ours.
        longest: tokens of the longest draft that can be verified.
    """
    return SuffixSettings(
        max_depth=args.suffix_max_depth, max_spec_factor=args.suffix_max_spec_factor,
        max_spec_offset=args.suffix_max_spec_offset, min_token_prob=args.suffix_min_token_prob, max_draft=longest,
        capacity_tokens=args.suffix_cache_tokens, prompt_tail=min(PROMPT_TAIL, args.suffix_max_depth),
    )  # fmt: skip
