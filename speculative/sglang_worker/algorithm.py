"""`ARCTIC` and `SUFFIX` in SGLang's registry of speculative algorithms, and what their arguments become."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arctic_sglang import env
from arctic_sglang.compat import vendor
from speculative.settings import ALGORITHMS, SpeculationSettings, refusals


class ChainAlgorithm(vendor.CustomSpecAlgo):  # type: ignore[misc]
    """An algorithm whose drafts are paths, and whose steps without a draft are SGLang's plain decode.

    SGLang asks its model runner's algorithm two things in one question, `is_speculative`: whether decode steps
    verify drafts, and whether CUDA graphs are captured for that. Here most steps may have no draft, so the
    runner's own graphs stay those of plain decode, and `Verifying` stands in while others are captured.
    """

    def is_speculative(self) -> bool:
        """False: the model runner's own graphs are those of plain decode."""
        return False

    def has_draft_kv(self) -> bool:
        """False: no draft writes keys and values of its own."""
        return False

    def need_topk(self) -> bool:
        """False: what travels from step to step is one token and one hidden state a request."""
        return False

    def carries_draft_hidden_states(self) -> bool:
        """False: prefill and decode are one server."""
        return False

    def supports_grammar_overlap(self) -> bool:
        """True: the grammar advances while the model runs."""
        return True

    def create_future_map(self, *args: Any, **kwargs: Any) -> Any:
        """The relay between steps that overlap."""
        from speculative.sglang_worker.relay import future_map  # for schedulers alone

        device, *rest = args
        return future_map(device, self, *rest, **kwargs)


class Verifying(ChainAlgorithm):
    """Stands in for the algorithm while the graphs of one width of verify steps are captured."""

    def is_speculative(self) -> bool:
        """True: capture steps that verify."""
        return True


def register() -> None:
    """Adds the algorithms to SGLang's registry. Idempotent."""
    for name in ALGORITHMS:
        if vendor.get_spec_algorithm(name) is None:
            vendor.SpeculativeAlgorithm.register(
                name, supports_overlap=True, validate_server_args=set_arguments, spec_class=ChainAlgorithm
            )(_worker)


def around_get_draft_kv_pool(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """None for our algorithms, which draft without a KV cache; SGLang's own answer for others.

    Args:
        original: SGLang's function.
        args: none, its parameters have names.
        kwargs: its parameters, `spec_algorithm` among them.
    """
    return None if isinstance(kwargs["spec_algorithm"], ChainAlgorithm) else original(*args, **kwargs)


def _worker(_args: Any) -> type:
    from speculative.sglang_worker.worker import SpeculativeWorker  # heavy, and for the scheduler alone

    return SpeculativeWorker


def set_arguments(args: Any) -> None:
    """Refuses what speculation does not go with, and sets what SGLang derives buffers from.

    Args:
        args: SGLang's arguments, before they are sealed.

    Raises:
        ValueError: some settings contradict each other or are refused; all refused ones are named. Or a variable has a
            value that it cannot have.
    """
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    settings = SpeculationSettings.of(given)
    env.untimed()  # refuses a wrong value here, not when the model is loaded
    refused = refusals(given)
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        msg = f"--speculative-algorithm {args.speculative_algorithm} does not go with:\n{listed}\nLeave these out."
        raise ValueError(msg)
    folder = Path(args.suffix_cache_path).parent if args.suffix_cache_path else Path()
    if not folder.is_dir():
        msg = f"--suffix-cache-path {args.suffix_cache_path}: there is no folder {folder}; make it first"
        raise ValueError(msg)
    args.speculative_num_draft_tokens = settings.width
    args.speculative_eagle_topk = 1
    args.enable_mixed_chunk = False
    if settings.head_path is None:
        args.speculative_num_steps = settings.width - 1
    elif args.return_hidden_states_mode is None:
        # The head reads the hidden state that each token was sampled from; graphs must be captured with it.
        args.return_hidden_states_mode = "full" if args.enable_return_hidden_states else "last"
