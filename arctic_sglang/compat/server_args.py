"""SGLang's server arguments with this plugin's flags.

The class stands where `ServerArgs` stood, so SGLang makes command-line flags, YAML keys, Engine keywords
and `/server_info` of its fields. It is also where the plugin judges and acts: SGLang swallows the errors
of plugins, but not those raised while it builds its arguments; and the arguments travel to every process
of a server, so what must happen in a process happens when they arrive there.
"""

import dataclasses
import logging
import os
from typing import Annotated, Any, get_type_hints

from arctic_sglang import env
from arctic_sglang.compat import apply, checkpoint_files, process, source, vendor, verify
from arctic_sglang.compat.seams import SEAMS, Kind, Role, seams_of
from arctic_sglang.config import ArcticConfig
from arctic_sglang.cpu import defaults
from arctic_sglang.embedding import placement, road
from arctic_sglang.embedding.checkpoint import PoolingSpec, UnsupportedCheckpointError, read_pooling
from arctic_sglang.features import Facts, Feature, requested, wanted_pooling, wants_swiftkv
from arctic_sglang.shift import limits as shift_limits
from arctic_sglang.shift.policy import parse_threshold
from arctic_sglang.shift.topology import Topology, check_divides
from speculative.settings import check_head_path, model_refusals
from swiftkv import limits
from swiftkv.layout import Layout

logger = logging.getLogger(__name__)


def _flag_fields() -> list[tuple[str, Any, Any]]:
    hints = get_type_hints(ArcticConfig)
    return [
        (
            f.name,
            Annotated[hints[f.name], vendor.Arg(help=f.metadata["help"]), vendor.NS("arctic")],
            dataclasses.field(default=f.default),
        )
        for f in dataclasses.fields(ArcticConfig)
    ]


_WithFlags = dataclasses.make_dataclass(
    "_WithFlags", _flag_fields(), bases=(vendor.ServerArgs,), namespace={"__module__": __name__}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What a start asks for, decided once in the main process and carried to the others.

    SGLang shows the attributes of its arguments as JSON, so there is nothing here that JSON lacks.
    """

    config: ArcticConfig
    features: tuple[Feature, ...]
    pooling: PoolingSpec | None
    cpu_threads: int | None  # of each rank, with Feature.CPU
    cpu_cores: str | None  # a core list for each rank, in SGLang's notation
    shift_threshold: int | str = 0  # most tokens of a tensor parallel step, or "auto", with Feature.SHIFT


@dataclasses.dataclass
class ArcticServerArgs(_WithFlags):
    """SGLang's `ServerArgs` plus one field for each flag of `ArcticConfig`.

    Raises:
        ValueError, TypeError: a flag's value is wrong, or flags contradict each other or the machine.
        SeamError: a requested feature cannot work with the installed SGLang.
    """

    def __post_init__(self) -> None:
        self.shift_parallel_threshold = str(self.shift_parallel_threshold)  # 512 in YAML, "auto" too
        config = ArcticConfig.from_args(self)
        self.is_embedding = self.is_embedding or checkpoint_files.embeds_unasked(self)
        facts = _facts(self)
        features = requested(config, facts)
        if Feature.SHIFT in features:
            self.tp_size *= config.ulysses_sequence_parallel_size  # to SGLang it is that, over all ranks
            if self.flashinfer_allreduce_fusion_backend is None:  # SGLang takes it by itself for some models
                self.enforce_disable_flashinfer_allreduce_fusion = True
        threads = _cpu_threads(self, config) if Feature.CPU in features else None
        cores = None if threads is None else defaults.cores_of_ranks(_core_count(), self.tp_size, threads)
        decision = Decision(config, tuple(sorted(features)), wanted_pooling(config, facts), threads, cores)
        problems = verify.verify(SEAMS, source.installed_root())
        verify.judge(problems, features | {Feature.FLAGS})
        if threads is not None:
            _set_cpu_defaults(self, threads)
        if decision.pooling is not None:
            _set_pooling_defaults(self, decision.pooling)
        if Feature.EMBEDDING in features:
            _set_embedding(self)
        if Feature.SPECULATION in features:
            # SGLang looks the algorithm up while it makes sense of its arguments.
            registry = [
                seam for seam in seams_of(frozenset({Feature.SPECULATION})) if seam.kind is Kind.REGISTER
            ]
            apply.apply(registry, process.role())
            check_head_path(self.speculative_draft_model_path)
        chunk_given = self.chunked_prefill_size is not None
        super().__post_init__()
        _check_embedding(self, config, facts)
        if Feature.CPU in features:
            _check_cpu_model(self)
        if Feature.SHIFT in features:
            decision = dataclasses.replace(decision, shift_threshold=_set_shift(self, config))
            if not chunk_given:
                _scale_prefill(self, config.ulysses_sequence_parallel_size)
        if Feature.SPECULATION in features:
            _check_speculated_model(self)
        # Only now has SGLang read the model's config.
        if wants_swiftkv(config, self.get_model_config().hf_config.architectures or ()):
            verify.judge([p for p in problems if p.feature is Feature.SWIFTKV], frozenset({Feature.SWIFTKV}))
            _set_swiftkv(self)
            decision = dataclasses.replace(decision, features=(*decision.features, Feature.SWIFTKV))
        self._arctic = decision
        _activate(decision)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        decision = state.get("_arctic")
        if decision is not None:  # absent while SGLang copies arguments that it has not finished
            _activate(decision)


def _activate(decision: Decision) -> None:
    """Applies the requested features' seams in this process, whichever it is."""
    role = process.role()
    apply.apply(seams_of(frozenset(decision.features)), role)
    if decision.cpu_threads is not None and role is Role.SCHEDULER:
        vendor.set_cpu_threads(decision.cpu_threads)
        # SGLang wants a core list for each rank of a group, though without AMX kernels it only reads it. Set
        # here and not in the main process, where it would leak into whatever the user starts next.
        env.set_threads_bind(decision.cpu_cores or "")
    process.report(decision.features, role)
    if role in (Role.MAIN, Role.SCHEDULER) and decision.features:
        logger.info(
            "arctic-sglang: %s on in the %s process (seams applied: %s)",
            ", ".join(decision.features), role, ", ".join(apply.applied()) or "none",
        )  # fmt: skip


def _facts(args: Any) -> Facts:
    pooling: PoolingSpec | UnsupportedCheckpointError | None = None
    if args.is_embedding and args.embedding_pooling in ("auto", "checkpoint"):
        try:
            pooling = read_pooling(checkpoint_files.folder(args.model_path, args.revision))
        except UnsupportedCheckpointError as error:
            pooling = error
    return Facts(
        accelerator=vendor.accelerator(),
        device=args.device,
        own_cpu_engine=env.cpu_engine_requested(),
        is_embedding=args.is_embedding,
        pooling=pooling,
        speculative_algorithm=args.speculative_algorithm,
    )


def _cpu_threads(args: Any, config: ArcticConfig) -> int:
    ranks = args.tp_size * args.pp_size * args.dp_size * config.embedding_replicas
    return defaults.threads_per_rank(_core_count(), ranks, config.cpu_threads_per_rank)


def _core_count() -> int:
    return len(os.sched_getaffinity(0))


def _set_cpu_defaults(args: Any, threads: int) -> None:
    changed = defaults.cpu_defaults({f.name: getattr(args, f.name) for f in dataclasses.fields(args)})
    for name, value in changed.items():
        setattr(args, name, value)
    logger.info("arctic-sglang: no GPU; %d threads a rank, and these defaults: %s", threads, changed)


def _check_cpu_model(args: Any) -> None:
    """Refuses weights that nothing here computes with.

    Raises:
        ValueError: they are so.
    """
    refused = defaults.cpu_refusal(args.get_model_config().quantization)
    if refused is not None:
        raise ValueError(refused)


def _check_embedding(args: Any, config: ArcticConfig, facts: Facts) -> None:
    """Refuses an embedding server that could not be told for one before SGLang had read the model.

    Raises:
        ValueError: it is one, and its checkpoint's pooling was not looked at.
    """
    if args.is_embedding and not facts.is_embedding and config.embedding_pooling != "stock":
        msg = (
            f"SGLang serves {args.model_path} as an embedding model, and its config.json could not be read before; "
            "add --is-embedding, and its pooling is looked for, or --embedding-pooling stock to keep SGLang's own"
        )
        raise ValueError(msg)


def _set_pooling_defaults(args: Any, pooling: PoolingSpec) -> None:
    if pooling.needs_whole_text:
        # A cached prefix or an earlier chunk leaves no token vectors behind to pool, and in an encoder a
        # prefix's keys and values depend on what follows it.
        args.disable_radix_cache = True
        args.chunked_prefill_size = -1


def _set_embedding(args: Any) -> None:
    """Refuses what the vectorised road does not go with, and fills in the size of its steps.

    Raises:
        ValueError: some settings are refused; all of them are named.
    """
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    refused = road.refusals(settings | {"pickled": env.pickled_messages()})
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        way_out = "Leave these out, or the flag (batch_sdk.embed gives it; engine option enable_fast_embedding=False)."
        msg = f"--enable-fast-embedding does not go with:\n{listed}\n{way_out}"
        raise ValueError(msg)
    if args.embedding_replicas > 1:
        _set_replicas(args, settings)
    if args.embedding_step_tokens is None:
        args.embedding_step_tokens = road.step_tokens(vendor.accelerator())
    if args.max_total_tokens is None and args.mem_fraction_static is None:
        args.max_total_tokens = road.CACHE_TOKENS


def _set_replicas(args: Any, settings: dict[str, Any]) -> None:
    """Refuses what further instances do not go with, and leaves them room on a GPU that they share.

    Raises:
        ValueError: some settings are refused; all of them are named.
    """
    refused = placement.refusals(settings)
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        flag = f"--embedding-replicas {args.embedding_replicas}"
        msg = f"{flag} does not go with:\n{listed}\nLeave these out, or the flag."
        raise ValueError(msg)
    gpus = placement.usable_gpus(vendor.device_count(), args.base_gpu_id, args.gpu_id_step)
    if args.max_total_tokens is None and placement.places(args.embedding_replicas, gpus)[0].sharing > 1:
        args.max_total_tokens = max(placement.SHARED_CACHE_TOKENS, args.context_length or 0)


def _check_speculated_model(args: Any) -> None:
    """Refuses models whose drafts cannot be verified.

    Raises:
        ValueError: the model is one of them.
    """
    model = args.get_model_config()
    refused = model_refusals(model, recurrent=vendor.mambaish_config(model) is not None)
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        msg = f"--speculative-algorithm {args.speculative_algorithm} does not go with:\n{listed}\nLeave the flag out."
        raise ValueError(msg)


def _set_shift(args: Any, config: ArcticConfig) -> int | str:
    """Refuses what Shift Parallelism does not go with.

    Returns:
        Tokens up to which a step is tensor parallel, or "auto".

    Raises:
        ValueError: the model or some settings are refused; all of those are named.
    """
    flag = f"--ulysses-sequence-parallel-size {config.ulysses_sequence_parallel_size}"
    model = args.get_model_config()
    quantized = getattr(model.hf_config, "quantization_config", None)
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    settings |= {
        "prefill_graph": args.cuda_graph_config.prefill.backend,
        "post_capture_kv_sizing": args.post_capture_kv_sizing_planned(),
        "fast_embedding_device": args.device if config.enable_fast_embedding else None,
    }
    refused = shift_limits.refusals(settings) or shift_limits.checkpoint_refusals(
        model.quantization, quantized
    )
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        msg = f"{flag} does not go with:\n{listed}\nLeave these out, or the flag."
        raise ValueError(msg)
    sp = config.ulysses_sequence_parallel_size
    topology = Topology(args.tp_size // sp, sp)
    heads = shift_limits.heads_of(model.hf_config, topology)
    if args.device == "cpu":  # where SGLang pads heads, and has no weights for the padding
        check_divides("num_key_value_heads", heads.kv, topology)
    return parse_threshold(config.shift_parallel_threshold) if config.enable_shift_parallel else 0


def _scale_prefill(args: Any, sp: int) -> None:
    """Gives a prefill step as many tokens for each rank as SGLang by itself gives one rank."""
    chunk = args.chunked_prefill_size * sp
    if chunk > 0:
        most = max(args.max_prefill_tokens, chunk)
        if most > args.max_prefill_tokens:
            logger.info(
                "arctic-sglang: --max-prefill-tokens %d becomes %d, the tokens of a prefill step on %d ranks; "
                "--chunked-prefill-size sets both apart from that", args.max_prefill_tokens, most, sp,
            )  # fmt: skip
        args.override("arctic-sglang", chunked_prefill_size=chunk, max_prefill_tokens=most)


def _set_swiftkv(args: Any) -> None:
    """Refuses what a SwiftKV model is not served with, and fixes from which size on a prefill is cut.

    Raises:
        ValueError: the config's numbers do not fit, or some settings are refused; all of them are named.
    """
    layout = Layout.of(args.get_model_config().hf_config)
    prefill, decode = args.get_attention_backends()
    graph = args.cuda_graph_config.prefill.backend
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(args)}
    quantized = getattr(args.get_model_config().hf_config, "quantization_config", None)
    settings |= {
        "prefill_backend": prefill,
        "decode_backend": decode,
        "prefill_graph": graph,
        "checkpoint_quantization": quantized and quantized.get("quant_method", "unknown"),
    }
    refused = limits.refusals(settings)
    if refused:
        listed = "\n".join(f"  - {text}" for text in refused)
        msg = f"this SwiftKV model is not served with:\n{listed}\nLeave these out, or serve its base model."
        raise ValueError(msg)
    graphs = limits.tail_graphs(args.cuda_graph_config.decode.backend, graph, args.speculative_algorithm)
    tokens = limits.min_tokens(args.swiftkv_min_tokens, graph, graphs)
    args.override("arctic-sglang", swiftkv_min_tokens=tokens)
    logger.info(
        "arctic-sglang: SwiftKV, cut at layer %d of %d, keys and values of %d layers cached; prefill steps of %d "
        "tokens and more stop at the cut; the rows that go up after it %s",
        layout.cut, layout.layers, layout.kv_layers, tokens,
        "have CUDA graphs" if graphs else "have no CUDA graphs",
    )  # fmt: skip
