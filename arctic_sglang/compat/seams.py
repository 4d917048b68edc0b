"""The table of every touch of SGLang's internals.

Order of preference for a new row: register, subclass, call, before, after, around, replace. SGLang's
signatures and bodies move between releases while its registries do not, so each step down needs its
reason in `why`, and `params` names every parameter that our side relies on.
"""

from dataclasses import dataclass
from enum import StrEnum

from arctic_sglang.features import Feature


class Kind(StrEnum):
    """How SGLang is touched. The last four go through SGLang's `HookRegistry`."""

    REGISTER = "register"
    SUBCLASS = "subclass"
    CALL = "call"
    SET = "set"  # a class attribute that SGLang documents as replaceable
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


HOOKED = frozenset({Kind.BEFORE, Kind.AFTER, Kind.AROUND, Kind.REPLACE})


class Role(StrEnum):
    """A process of a server, told by the SGLang modules that it has imported."""

    MAIN = "main"
    SCHEDULER = "scheduler"
    DETOKENIZER = "detokenizer"
    CONTROLLER = "controller"  # data-parallel controller
    TOKENIZER = "tokenizer"  # extra tokenizer worker


EVERYWHERE = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Seam:
    """One touch of SGLang.

    Attributes:
        id: short name, `feature.what`.
        target: dotted path in SGLang.
        kind: how it is touched.
        feature: who needs it.
        why: one sentence.
        hook: `module:attribute` of our side; empty for SUBCLASS and CALL.
        params: parameters that we rely on, in the order of the signature.
        members: attributes of a class that we rely on.
        roles: processes in which it is applied.
        versions: SGLang releases it was tested with.
        exit: what would let us delete the row.
    """

    id: str
    target: str
    kind: Kind
    feature: Feature
    why: str
    hook: str = ""
    params: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    roles: frozenset[Role] = EVERYWHERE
    versions: str = "==0.5.17"
    exit: str = ""


SEAMS: tuple[Seam, ...] = (
    Seam(
        id="flags.server_args",
        target="sglang.srt.server_args.ServerArgs",
        kind=Kind.REPLACE,
        feature=Feature.FLAGS,
        hook="arctic_sglang.compat.server_args:ArcticServerArgs",
        members=("__post_init__", "add_cli_args", "from_cli_args", "model_path", "device", "tp_size"),
        why="SGLang builds flags, YAML keys, Engine keywords and /server_info from this class alone.",
        exit="a plugin interface for flags in SGLang",
    ),
    Seam(
        id="flags.engine",
        target="sglang.srt.entrypoints.engine.Engine.server_args_class",
        kind=Kind.SET,
        feature=Feature.FLAGS,
        hook="arctic_sglang.compat.server_args:ArcticServerArgs",
        why="Engine keeps the class in an attribute, which a hook on the name does not reach.",
        exit="a plugin interface for flags in SGLang",
    ),
    Seam(
        id="flags.help",
        target="sglang.srt.arg_groups.arg_utils.add_cli_args_from_dataclass",
        kind=Kind.BEFORE,
        feature=Feature.FLAGS,
        hook="arctic_sglang.plugin:before_add_cli_args",
        params=("parser", "cls"),
        why="`sglang serve --help` prints before it loads plugins; this loads them when flags are listed.",
        exit="`sglang serve --help` loads plugins first",
    ),
    Seam(
        id="cpu.platform",
        target="sglang.srt.platforms.interface.SRTPlatform",
        kind=Kind.SUBCLASS,
        feature=Feature.CPU,
        members=(
            "get_default_attention_backend",
            "get_mha_kv_pool_cls",
            "get_mla_kv_pool_cls",
            "get_paged_allocator_cls",
            "get_dispatch_key_name",
        ),
        why="An out-of-tree platform makes every layer take its torch form: no CUDA or AMX kernels.",
        exit="SGLang's own CPU platform works with the wheels on PyPI",
    ),
    Seam(
        id="cpu.group",
        target="sglang.srt.distributed.parallel_state.GroupCoordinator.__init__",
        kind=Kind.BEFORE,
        feature=Feature.CPU,
        hook="arctic_sglang.cpu.groups:before_group_init",
        params=("use_pynccl", "use_custom_allreduce"),
        roles=frozenset({Role.SCHEDULER}),
        why="With a CUDA build of torch SGLang wants NCCL for tensor parallelism; a CPU has gloo alone.",
        exit="GroupCoordinator asks the platform which communicators exist",
    ),
    Seam(
        id="cpu.grammar_allocate",
        target="sglang.srt.constrained.xgrammar_backend.XGrammarGrammar.allocate_vocab_mask",
        kind=Kind.AROUND,
        feature=Feature.CPU,
        hook="arctic_sglang.cpu.grammar:around_allocate",
        params=("self", "vocab_size", "batch_size", "device"),
        roles=frozenset({Role.SCHEDULER}),
        why="SGLang pins the mask's memory, which needs a CUDA driver; xgrammar's own allocation does not.",
        exit="SGLang pins only where it can",
    ),
    Seam(
        id="cpu.grammar_apply",
        target="sglang.srt.constrained.xgrammar_backend.XGrammarGrammar.apply_vocab_mask",
        kind=Kind.AROUND,
        feature=Feature.CPU,
        hook="arctic_sglang.cpu.grammar:around_apply",
        params=("self", "logits", "vocab_mask"),
        roles=frozenset({Role.SCHEDULER}),
        why="SGLang refuses logits on a CPU; xgrammar has the function for them.",
        exit="SGLang calls xgrammar for logits on a CPU",
    ),
    Seam(
        id="pooling.model",
        target="sglang.srt.model_executor.model_runner.ModelRunner.load_model",
        kind=Kind.AFTER,
        feature=Feature.POOLING,
        hook="arctic_sglang.embedding.pooling:after_load_model",
        params=("self",),
        roles=frozenset({Role.SCHEDULER}),
        why="SGLang fixes the pooling in each model file and never reads the checkpoint's own.",
        exit="SGLang reads modules.json",
    ),
    Seam(
        id="pooling.pooler",
        target="sglang.srt.layers.pooler.Pooler",
        kind=Kind.SUBCLASS,
        feature=Feature.POOLING,
        members=("forward",),
        why="Our pooler stands where the model's was and answers in the same form.",
        exit="SGLang reads modules.json",
    ),
    Seam(
        id="pooling.output",
        target="sglang.srt.layers.pooler.EmbeddingPoolerOutput",
        kind=Kind.CALL,
        feature=Feature.POOLING,
        members=("embeddings",),
        why="What a pooler returns.",
        exit="SGLang reads modules.json",
    ),
    Seam(
        id="pooling.batch",
        target="sglang.srt.model_executor.forward_batch_info.ForwardBatch",
        kind=Kind.CALL,
        feature=Feature.POOLING,
        members=("extend_seq_lens", "extend_seq_lens_cpu", "dimensions"),
        why="Where one text ends and the next begins.",
        exit="SGLang reads modules.json",
    ),
    Seam(
        id="flags.arg",
        target="sglang.srt.arg_groups.arg_utils.Arg",
        kind=Kind.CALL,
        feature=Feature.FLAGS,
        why="Describes a flag's help in the annotation of its field.",
        exit="a plugin interface for flags in SGLang",
    ),
    Seam(
        id="flags.ns",
        target="sglang.srt.arg_groups.arg_utils.NS",
        kind=Kind.CALL,
        feature=Feature.FLAGS,
        why="Names the configuration bag that a flag belongs to.",
        exit="a plugin interface for flags in SGLang",
    ),
    Seam(
        id="flags.load",
        target="sglang.srt.plugins.load_plugins",
        kind=Kind.CALL,
        feature=Feature.FLAGS,
        why="Loads plugins where a command lists flags before it did.",
        exit="`sglang serve --help` loads plugins first",
    ),
    Seam(
        id="flags.hooks",
        target="sglang.srt.plugins.hook_registry.HookRegistry",
        kind=Kind.CALL,
        feature=Feature.FLAGS,
        members=("register", "apply_hooks"),
        why="Applies every hook of this table.",
        exit="SGLang documents it as public",
    ),
    Seam(
        id="flags.hook_type",
        target="sglang.srt.plugins.hook_registry.HookType",
        kind=Kind.CALL,
        feature=Feature.FLAGS,
        members=("BEFORE", "AFTER", "AROUND", "REPLACE"),
        why="The kinds of hooks.",
        exit="SGLang documents it as public",
    ),
    Seam(
        id="flags.hook_source",
        target="sglang.srt.plugins.hook_registry.HookSource",
        kind=Kind.CALL,
        feature=Feature.FLAGS,
        members=("plugin_name", "dist_name"),
        why="Names this plugin in SGLang's log.",
        exit="SGLang documents it as public",
    ),
    Seam(
        id="cpu.device",
        target="sglang.srt.platforms.cpu.CpuDeviceMixin",
        kind=Kind.SUBCLASS,
        feature=Feature.CPU,
        members=("get_device_total_memory",),
        why="Memory and names of a CPU, as SGLang's own platform reports them.",
        exit="SGLang documents it as public",
    ),
    Seam(
        id="cpu.platform_kind",
        target="sglang.srt.platforms.device_mixin.PlatformEnum",
        kind=Kind.CALL,
        feature=Feature.CPU,
        members=("OOT",),
        why="Says that the platform is an out-of-tree one.",
        exit="SGLang documents it as public",
    ),
    Seam(
        id="cpu.mha_pool",
        target="sglang.srt.mem_cache.memory_pool.MHATokenToKVPool",
        kind=Kind.CALL,
        feature=Feature.CPU,
        why="The KV pool; it holds plain tensors.",
        exit="SGLang's own CPU platform works with the wheels on PyPI",
    ),
    Seam(
        id="cpu.mla_pool",
        target="sglang.srt.mem_cache.memory_pool.MLATokenToKVPool",
        kind=Kind.CALL,
        feature=Feature.CPU,
        why="The latent KV pool; it holds plain tensors.",
        exit="SGLang's own CPU platform works with the wheels on PyPI",
    ),
    Seam(
        id="cpu.allocator",
        target="sglang.srt.mem_cache.allocator.TokenToKVPoolAllocator",
        kind=Kind.CALL,
        feature=Feature.CPU,
        params=("size", "dtype", "device", "kvcache", "need_sort"),
        why="The allocator of KV slots without a GPU kernel.",
        exit="SGLang's own CPU platform works with the wheels on PyPI",
    ),
    Seam(
        id="pooling.kind",
        target="sglang.srt.layers.pooler.PoolingType",
        kind=Kind.CALL,
        feature=Feature.POOLING,
        members=("CLS", "MEAN", "LAST"),
        why="What SGLang calls the three poolings.",
        exit="SGLang reads modules.json",
    ),
    Seam(
        id="pooling.runner",
        target="sglang.srt.model_executor.model_runner.ModelRunner",
        kind=Kind.CALL,
        feature=Feature.POOLING,
        members=("model", "server_args"),
        why="Holds the loaded model, and the arguments that say how to pool.",
        exit="SGLang reads modules.json",
    ),
    Seam(
        id="batch.request",
        target="sglang.srt.managers.io_struct.EmbeddingReqInput",
        kind=Kind.CALL,
        feature=Feature.BATCH,
        members=("input_ids",),
        why="Engine.encode takes texts alone and refuses an empty one; this takes token ids.",
        exit="Engine.encode takes token ids",
    ),
    Seam(
        id="batch.engine",
        target="sglang.srt.entrypoints.engine.Engine",
        kind=Kind.CALL,
        feature=Feature.BATCH,
        members=(
            "async_generate",
            "loop",
            "send_to_rpc",
            "shutdown",
            "tokenizer_manager",
            "template_manager",
            "server_args",
        ),
        why="Rows are awaited on the engine's own loop, and its own processes are ended.",
        exit="an Engine with abort, and a shutdown that ends its own processes alone",
    ),
    Seam(
        id="batch.tokenizer",
        target="sglang.srt.managers.tokenizer_manager.TokenizerManager",
        kind=Kind.CALL,
        feature=Feature.BATCH,
        members=(
            "tokenizer",
            "context_len",
            "num_reserved_tokens",
            "max_req_input_len",
            "model_config",
            "generate_request",
            "abort_request",
            "_subprocess_watchdog",
        ),
        why="Its tokenizer and limits decide what fits before a row is sent.",
        exit="an Engine that exposes tokenizer, limits and abort",
    ),
    Seam(
        id="batch.model",
        target="sglang.srt.configs.model_config.ModelConfig",
        kind=Kind.CALL,
        feature=Feature.BATCH,
        members=("is_embedding_gemma",),
        why="This model's tokenizer leaves out the end token that it was trained with.",
        exit="the tokenizer adds it",
    ),
    Seam(
        id="batch.templates",
        target="sglang.srt.parser.template_manager.TemplateManager",
        kind=Kind.CALL,
        feature=Feature.BATCH,
        members=("chat_template_name",),
        why="A built-in chat template is not the tokenizer's, so it is refused.",
        exit="the tokenizer carries it",
    ),
    Seam(
        id="batch.args",
        target="sglang.srt.server_args.ServerArgs",
        kind=Kind.CALL,
        feature=Feature.BATCH,
        members=("allow_auto_truncate", "custom_sigquit_handler"),
        why="Whether SGLang cuts long inputs, and what a failing child does to this process.",
        exit="SGLang documents it as public",
    ),
)


def seams_of(features: frozenset[Feature]) -> tuple[Seam, ...]:
    """The rows that these features need, in the table's order."""
    return tuple(seam for seam in SEAMS if seam.feature in features)
