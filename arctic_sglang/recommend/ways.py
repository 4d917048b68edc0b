"""Ways to use the GPUs in the order of preference for the traffic, and what speaks for and against them. Pure."""

from collections.abc import Iterator, Sequence

from arctic_sglang.recommend import evidence as ev
from arctic_sglang.recommend.answer import Alternative, Flag, Question, Way
from arctic_sglang.recommend.judge import refusals
from arctic_sglang.recommend.sizes import ENCODERS
from speculative.settings import check_head_path
from swiftkv.layout import ARCHITECTURES

SHIFT = "Shift Parallelism"
# Traffic whose single request should be fast even at the cost of the sum of all.
_FAST = ("interactive", "agentic")
_DRAFTED = 64  # requests: the most that benchmarks/results/speculator_draft.json has a head's draft for


def candidates(question: Question) -> Iterator[Way]:
    """Ways to use the GPUs, best first."""
    gpus, kind = question.gpus, question.traffic.kind
    powers = [2**power for power in range(gpus.bit_length())]
    if kind == "embeddings":
        yield Way(dp=gpus)
        yield from (Way(tp=ranks) for ranks in powers)
        return
    if kind == "bulk":
        yield Way(dp=gpus)
    for ranks in reversed(powers):
        if kind in _FAST or ranks == gpus:
            yield from (Way(tp, ranks // tp) for tp in powers if tp < ranks)
    if kind in _FAST:
        yield from (Way(tp=ranks) for ranks in reversed(powers))
    yield from (Way(tp=ranks, dp=gpus // ranks) for ranks in powers)


def common_flags(question: Question) -> tuple[Flag, ...]:
    """Flags that go with every way."""
    flags = []
    if question.traffic.kind == "embeddings":
        flags.append(Flag("is_embedding", True, "answers are embeddings"))
        if takes_road(question):
            why = (
                "a request of any number of texts travels as arrays: {} times stock SGLang's tokens/s behind "
                "/v1/embeddings with 64 rows a request, {} times with one"
            )
            flags.append(Flag("enable_fast_embedding", True, why, (ev.EMBED_HTTP, ev.EMBED_HTTP_SINGLE)))
    if question.quantization:
        why = (
            "asked for; halves the linear layers' weights. Stock SGLang's prefill with it: {} tokens/s on one GPU, in "
            "bf16 {} (two sessions)"
        )
        flags.append(Flag("quantization", question.quantization, why, (ev.PREFILL_FP8, ev.PREFILL_BF16)))
    return tuple(flags)


def flags_of(
    question: Question, way: Way, passed: Sequence[Alternative] = (), enough: bool = True
) -> tuple[Flag, ...]:
    """A way's flags.

    Args:
        question: what was asked.
        way: to use the GPUs.
        passed: ways that were passed over.
        enough: whether the KV cache holds the traffic.
    """
    flags = []
    if way.tp > 1:
        flags.append(_tensor(question, way, _unshifted(passed), enough))
    if way.sp > 1:
        flags += _shift(way)
    if way.dp > 1 and takes_road(question):
        why = "one instance on each GPU, behind one front door; one that dies is started again"
        flags.append(Flag("embedding_replicas", way.dp, why))
    elif way.dp > 1:
        flags.append(_data(question, way, _unshifted(passed)))
    return tuple(flags)


def _shift(way: Way) -> Iterator[Flag]:
    two = way.tp * way.sp == 2
    if two:
        why = (
            "steps of many tokens are shared out by token: first token of 8,192 after {} ms, with tensor parallelism "
            "{}, prefill {} and {} tokens/s (two GPUs)"
        )
        figures = (ev.SHIFT_TTFT_2, ev.TP_TTFT_2, ev.SHIFT_PREFILL_2, ev.TP_PREFILL_2)
    else:
        why = (
            "steps of many tokens are shared out by token: first token of 8,192 {} times as fast as with tensor "
            "parallelism, prefill {} times its tokens/s (four GPUs)"
        )
        figures = (ev.SHIFT_TTFT_TP, ev.SHIFT_PREFILL_TP)
    yield Flag("ulysses_sequence_parallel_size", way.sp, why, figures)
    if two:
        why = (
            "steps of few tokens run in tensor parallelism, over the same KV cache: decode of 64 requests {} ms a "
            "token, with tensor parallelism {}, and {} times the speed of data parallelism (two GPUs)"
        )
        figures = (ev.SHIFT_DECODE_64_2, ev.TP_DECODE_64_2, ev.SHIFT_DECODE_64_DP2)
    else:
        why = (
            "steps of few tokens run in tensor parallelism, over the same KV cache: decode at {} of its speed with 1 "
            "request, {} with 64, and {} times that of data parallelism with 64 (four GPUs)"
        )
        figures = (ev.SHIFT_DECODE_1_TP, ev.SHIFT_DECODE_64_TP, ev.SHIFT_DECODE_64_DP)
    yield Flag("enable_shift_parallel", True, why, figures)


def _tensor(question: Question, way: Way, unshifted: bool, enough: bool) -> Flag:
    if not enough:
        return Flag("tp_size", way.tp, "of all ways it leaves most room for KV cache, by the estimate")
    if way.sp == way.dp == 1 and unshifted and question.traffic.kind in _FAST:
        why = (
            "Shift Parallelism is refused; tensor parallelism makes single requests fast: decode of 64 at once {} "
            "ms/token over four GPUs, with data parallelism {}"
        )
        return Flag("tp_size", way.tp, why, (ev.TP_DECODE_64, ev.DP_DECODE_64))
    what = "the weights" if takes_road(question) else "weights and the traffic's KV cache"
    return Flag("tp_size", way.tp, f"the smallest power of two at which {what} fit, by estimate")


def _data(question: Question, way: Way, unshifted: bool) -> Flag:
    kind = question.traffic.kind
    if kind == "bulk" and way.tp == 1:
        why = (
            "one GPU holds the model, and copies send nothing to each other: Shift Parallelism's prefill was at "
            "{} of four copies' tokens/s, {} of two copies'; 256 requests of 2,000 in and 250 out at {} of their speed"
        )
        return Flag("dp_size", way.dp, why, (ev.SHIFT_PREFILL_DP, ev.SHIFT_PREFILL_DP2, ev.SHIFT_MIX_DP))
    if kind == "embeddings":
        return Flag("dp_size", way.dp, "a copy of the model on each GPU, by SGLang's own data parallelism")
    if unshifted:
        why = (
            "Shift Parallelism is refused; copies get most done: 256 requests of 2,000 in and 250 out in {} s "
            "over four GPUs, with tensor parallelism {} s"
        )
        return Flag("dp_size", way.dp, why, (ev.DP_MIX, ev.TP_MIX))
    if question.gpus & (question.gpus - 1):
        return Flag(
            "dp_size",
            way.dp,
            "Shift Parallelism is recommended for 2, 4, 8, ... GPUs and would leave some unused",
        )
    return Flag(
        "dp_size",
        way.dp,
        "copies of the model leave more room for KV cache than Shift Parallelism, by estimate",
    )


def speculation(question: Question) -> tuple[tuple[Flag, ...], tuple[Alternative, ...]]:
    """Flags for speculative decoding, and why there are none where there are none.

    Raises:
        ValueError: there is no such draft head.
    """
    if question.traffic.kind == "embeddings":
        return (), ()
    flags: list[Flag] = []
    check_head_path(question.head)
    if question.head is not None:
        why = (
            "with the head that was given. The tiny model of this repository with head and index, 32 at once: {} "
            "tokens/s, without speculation {}"
        )
        flags = [
            Flag("speculative_algorithm", "ARCTIC", why, (ev.BOTH_32, ev.NONE_32)),
            Flag("speculative_draft_model_path", question.head, "the head that was given"),
            Flag(
                "enable_suffix_decoding",
                True,
                "drafts from the index too, where they promise more; it costs little",
            ),
        ]
        if question.traffic.requests > _DRAFTED:
            why = f"a head's drafts were timed for up to {_DRAFTED} requests (speculator_draft.json), not for more"
            flags.append(Flag("speculative_disable_by_batch_size", _DRAFTED, why))
    elif question.traffic.kind == "agentic":
        why = (
            "agents repeat themselves: text that repeats takes {} of plain decode's time per token with 1 request, {} "
            "with 16; where nothing repeats {} to {}"
        )
        figures = (ev.SUFFIX_REPEATS_1, ev.SUFFIX_REPEATS_16, ev.SUFFIX_FRESH_1, ev.SUFFIX_FRESH_256)
        flags = [Flag("speculative_algorithm", "SUFFIX", why, figures)]
    if not flags:
        why = (
            "pays where text repeats ({} of plain decode's time per token at 16 requests) and costs little elsewhere "
            "({} at 256); `python -m speculative.simulate` tells for recorded traffic"
        )
        figures = (ev.SUFFIX_REPEATS_16, ev.SUFFIX_FRESH_256)
        return (), (Alternative("--speculative-algorithm SUFFIX", why, figures),)
    reasons = refusals(question.model, {flag.name: flag.value for flag in flags})
    if reasons:
        return (), (Alternative("speculative decoding", reasons[0], refused=True),)
    return tuple(flags), ()


def alternatives(question: Question, way: Way, passed: Sequence[Alternative]) -> Iterator[Alternative]:
    """What was not taken though it may work."""
    model, kind = question.model, question.traffic.kind
    if way.sp > 1 and way.tp == 1 and all(each.what != "data parallelism" for each in passed):
        yield Alternative(
            "--dp-size",
            "Shift Parallelism reads prompts at {} (four GPUs) and {} (two) of its tokens/s, but gives the first token "
            "of 8,192 {} times and decodes 64 requests {} times as fast",
            (ev.SHIFT_PREFILL_DP, ev.SHIFT_PREFILL_DP2, ev.SHIFT_TTFT_DP, ev.SHIFT_DECODE_64_DP),
        )
    elif kind == "bulk" and way.dp > 1 and way.tp == 1 and not _unshifted(passed):
        yield Alternative(
            "--enable-shift-parallel",
            "better if latency counts too: first token of 8,192 {} times as fast, decode of 256 {} times",
            (ev.SHIFT_TTFT_DP, ev.SHIFT_DECODE_256_DP),
        )
    if kind == "embeddings" and question.model.architecture in ENCODERS:
        yield Alternative(
            "two instances on a GPU", "{} tokens/s, one instance {}", (ev.EMBED_TWO, ev.EMBED_ONE)
        )
    if kind == "embeddings":
        return
    if not question.quantization and model.quantized is None:
        why = (
            "about half the weights' memory, and prefill of stock SGLang at {} tokens/s for {} in bf16; its quality "
            "was not measured"
        )
        yield Alternative("--quantization fp8", why, (ev.PREFILL_FP8, ev.PREFILL_BF16))
    if model.config.get("model_type") in ARCHITECTURES:
        yield Alternative(
            "SwiftKV",
            "prefill {} times as fast, decode as before ({}), but another model: `python -m swiftkv.convert` makes it "
            "of this one, and it is of little use before a training (`swiftkv.distill`); no promise of its quality",
            (ev.SWIFTKV_PREFILL, ev.SWIFTKV_DECODE_64),
        )


def unknown(question: Question, way: Way, slots: int | None, drafts: Sequence[Flag]) -> tuple[str, ...]:
    """What the answer does not know, most important first."""
    return (
        *_unknown_traffic(question, slots),
        *_unknown_speed(question, way, drafts),
        *_unknown_start(question, way),
    )


def _unknown_traffic(question: Question, slots: int | None) -> Iterator[str]:
    traffic, window = question.traffic, question.model.window
    if not traffic.measured:
        out = f" and {traffic.tokens_out:,} out" if traffic.tokens_out else ""
        yield (
            f"your traffic: {traffic.requests} requests at once of {traffic.tokens_in:,} tokens in{out} "
            f"are assumed; --requests-at-once, --tokens-in and --tokens-out say it"
        )
    elif window and traffic.each > window:
        yield f"whether the window is large enough: config.json says {window:,} tokens, a request has {traffic.each:,}"
    if slots is not None:
        yield "the KV cache's real size: it is an estimate from config.json; SGLang logs it at the start"
        if slots < traffic.tokens:
            yield f"how long requests wait: the {traffic.tokens:,} tokens of all at once do not fit, by estimate"


def _unknown_speed(question: Question, way: Way, drafts: Sequence[Flag]) -> Iterator[str]:
    model = question.model
    if question.traffic.kind == "embeddings":
        yield "the speed of other models than arctic-embed-m-v1.5's shape, on other GPUs than an H200"
        if way.dp > 1:
            yield "replicas on several GPUs: not tried"
    elif way.gpus > 1:
        yield "the speed on your GPUs: figures are of Llama-3.1-8B's shape, bf16, dummy weights, on two or four H200s"
    if way.sp > 1:
        if way.tp > 1:
            yield "the speed of Shift Parallelism with --tp-size above 1: not measured"
        if model.config.get("num_experts"):
            yield "the speed of a model with experts under Shift Parallelism: not measured"
        if model.swiftkv:
            yield "SwiftKV models under Shift Parallelism: measured on two GPUs alone (docs/everything.md)"
        if question.quantization or model.quantized:
            yield "the speed of fp8 under Shift Parallelism: not measured"
    if drafts:
        yield "whether your text repeats: `python -m speculative.simulate` plays recorded traffic, without a GPU"
        if way.dp > 1:
            yield "speculation with --dp-size: not tried"
        if model.swiftkv:
            yield "what drafts bring a SwiftKV model in decode: measured on two GPUs alone (docs/everything.md)"
        if question.head is not None and way.tp * way.sp > 1:
            yield "a draft head over several GPUs: measured on two alone, a random head (docs/everything.md)"
    if question.head is not None and drafts:
        yield "whether the head was made for this model; the memory of its weights is not counted"


def _unknown_start(question: Question, way: Way) -> Iterator[str]:
    model = question.model
    if way.sp > 1:
        yield "whether your GPUs can write to each other's memory, which Shift Parallelism needs, on one host"
    if not model.known and model.architecture not in ENCODERS:
        yield f"what SGLang itself wants of a {model.architecture}: sizes are compared, nothing else"
    if model.swiftkv:
        yield "SGLang's choice of attention on your GPUs; a SwiftKV model needs fa3, flashinfer, triton or torch_native"
    if model.pooling is None and question.traffic.kind == "embeddings":
        yield "how vectors are pooled: there are no sentence-transformers files; --embedding-pooling names it"
    if question.traffic.kind == "embeddings" and question.gpu_gib < 40:
        yield "whether such GPUs are large enough for SGLang's prefill steps of 16,384 tokens: not tried under 40 GiB"
    if way.gpus < question.gpus:
        yield f"a use for the other {question.gpus - way.gpus} of {question.gpus} GPUs"


def _unshifted(passed: Sequence[Alternative]) -> bool:
    return any(each.what == SHIFT and each.refused for each in passed)


def takes_road(question: Question) -> bool:
    """Whether the vectorised road answers, which is recommended for the kinds that are known to go by it: attention
    windows and caps it does not do, and config.json has no one way to say that there are some."""
    return question.traffic.kind == "embeddings" and question.model.embeds
