"""Which flags a model should be served with. Pure: a question in, a recommendation out.

Ways to use the GPUs come in the order of preference for the traffic (`ways`). The first one that a start would not
refuse and whose KV cache holds the traffic is taken; if none holds it, the one that holds most.
"""

from collections.abc import Iterable
from dataclasses import replace

from arctic_sglang.embedding.placement import REPLICA_CACHE_TOKENS
from arctic_sglang.recommend import ways
from arctic_sglang.recommend.answer import Alternative, Flag, Question, Recommendation, Way
from arctic_sglang.recommend.judge import refusals
from arctic_sglang.recommend.sizes import GIB, Sizes, reserved


def recommend(question: Question) -> Recommendation:
    """The flags for a model, some GPUs and a kind of traffic.

    Raises:
        ValueError: the model does not fit, cannot do what is asked, or the question makes no sense.
    """
    question, settled = _checked(question)
    sizes = Sizes.of(question.model, question.quantization == "fp8")
    common = ways.common_flags(question)
    unserved = refusals(question.model, _keywords(common))
    if unserved:
        listed = "\n".join(f"  - {text}" for text in unserved)
        raise ValueError(f"{question.model.path} cannot be served for {question.traffic.kind}:\n{listed}")
    drafts, undrafted = ways.speculation(question)
    best, passed = _choose(question, sizes, (*common, *drafts), ways.candidates(question))
    if best is None:
        raise ValueError(_no_room(question, sizes, passed))
    way, slots = best
    enough = slots is None or slots >= question.traffic.tokens
    chosen = (*common, *ways.flags_of(question, way, passed, enough), *drafts)
    return Recommendation(
        question=question,
        flags=chosen,
        gpus=way.gpus,
        weights_gib=sizes.weights(way.tp, way.sp) / GIB,
        kv_tokens=slots,
        alternatives=(*settled, *passed, *undrafted, *ways.alternatives(question, way, passed)),
        unknown=ways.unknown(question, way, slots, drafts),
    )


def _keywords(flags: Iterable[Flag]) -> dict[str, object]:
    return {flag.name: flag.value for flag in flags}


def _checked(question: Question) -> tuple[Question, tuple[Alternative, ...]]:
    """The question with what the model itself settles; raises what makes no sense."""
    model, traffic = question.model, question.traffic
    embeds = traffic.kind == "embeddings"
    if question.gpus < 1 or not question.gpu_gib > 0:
        msg = f"--gpus {question.gpus}, --gpu-memory {question.gpu_gib:g}: both must be above 0"
        raise ValueError(msg)
    if traffic.requests < 1 or traffic.tokens_in < 1 or traffic.tokens_out < (0 if embeds else 1):
        msg = (
            f"--requests-at-once {traffic.requests}, --tokens-in {traffic.tokens_in}, --tokens-out "
            f"{traffic.tokens_out}: each must be at least 1; for embeddings the last may be 0"
        )
        raise ValueError(msg)
    if not embeds and not model.generates:
        msg = f"{model.path} is a {model.architecture}, which generates no text; ask for --traffic embeddings"
        raise ValueError(msg)
    if embeds and question.head is not None:
        msg = f"--draft-head {question.head}: embeddings are not decoded; leave it out"
        raise ValueError(msg)
    if not traffic.measured and model.window and traffic.each > model.window:
        out = min(traffic.tokens_out, model.window // 2)
        traffic = replace(traffic, tokens_in=max(1, model.window - out), tokens_out=out)
        question = replace(question, traffic=traffic)
    if question.quantization and model.quantized == question.quantization:
        note = Alternative(
            f"--quantization {question.quantization}", "the checkpoint comes so; nothing to give"
        )
        return replace(question, quantization=None), (note,)
    if question.quantization and model.quantized:
        msg = (
            f"--quantization {question.quantization}: the checkpoint of {model.path} comes quantised as "
            f"{model.quantized}; leave the flag out, or take a checkpoint that is not quantised"
        )
        raise ValueError(msg)
    return question, ()


def _choose(
    question: Question, sizes: Sizes, others: tuple[Flag, ...], candidates: Iterable[Way]
) -> tuple[tuple[Way, int | None] | None, list[Alternative]]:
    """The way to take with its slots for tokens, None if the model fits in no way; and why not the ways before it."""
    best: tuple[Way, int | None] | None = None
    refused: dict[str, Alternative] = {}
    room: dict[str, int] = {}  # the most slots of each kind of way
    for way in candidates:
        reasons = refusals(question.model, _keywords((*others, *ways.flags_of(question, way))))
        if reasons:
            refused.setdefault(way.title, Alternative(way.title, f"refused: {reasons[0]}", refused=True))
            continue
        slots = _slots(question, sizes, way)
        cached = sizes.kv_row and not ways.takes_road(question)
        if not cached and slots is not None and (not sizes.kv_row or slots >= REPLICA_CACHE_TOKENS):
            best = way, None
            break
        usable = slots * way.dp if cached and slots is not None and slots >= question.traffic.each else 0
        room[way.title] = max(usable, room.get(way.title, 0))
        if usable and (best is None or usable > (best[1] or 0)):
            best = way, usable
        if usable >= question.traffic.tokens:
            break
    found = {title: each for title, each in refused.items() if title not in room}
    for title, most in room.items():
        why = f"KV cache for about {most:,} tokens" if most else "weights and one request do not fit"
        found[title] = Alternative(title, f"{why}, by estimate")
    if best is not None:
        found.pop(best[0].title, None)
    return best, list(found.values())


def _slots(question: Question, sizes: Sizes, way: Way) -> int | None:
    """Tokens in the KV cache of one copy of the model, 0 if there is none; None: not even the weights fit."""
    ranks = way.tp * way.sp
    left = (question.gpu_gib - reserved(question.gpu_gib, ranks)) * GIB - sizes.weights(way.tp, way.sp)
    if left < 0:
        return None
    return int(left / sizes.kv_bytes(ranks)) if sizes.kv_row else 0


def _no_room(question: Question, sizes: Sizes, passed: list[Alternative]) -> str:
    """What was given and what would be needed."""
    model, gpus = question.model, question.gpus
    powers = [2**power for power in range(gpus.bit_length())]
    most = max(ranks for ranks in powers if ranks == 1 or not refusals(model, {"tp_size": ranks}))
    cache = question.traffic.each * sizes.kv_bytes(most) / GIB
    weights, free = sizes.weights(most) / GIB, reserved(question.gpu_gib, most)
    text = (
        f"{model.path} does not fit on {gpus} x {question.gpu_gib:g} GiB. Shared out over {most}, the most that its "
        f"sizes allow, it takes {weights:.1f} GiB of weights a GPU and, for one request of "
        f"{question.traffic.each:,} tokens, {cache:.1f} GiB of KV cache, beside the {free:.1f} GiB that SGLang leaves "
        f"free: {weights + cache + free:.1f} GiB a GPU would be needed. Take more or larger GPUs"
    )
    if question.quantization is None and model.quantized is None:
        text += ", or --quantization fp8"
    return text + "".join(f"\n  {each.what}: {each.reason}" for each in passed if each.refused)
