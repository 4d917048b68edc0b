"""A recommendation as a command line, as Python or as JSON. Pure: text."""

import json
import shlex
import textwrap
from collections.abc import Iterator

from arctic_sglang.config import flag_name
from arctic_sglang.recommend.answer import Alternative, Flag, Recommendation

FORMATS = ("command", "python", "json")
_WIDTH = 112


def argv(answer: Recommendation) -> list[str]:
    """The arguments of `python -m sglang.launch_server`."""
    words = ["--model-path", answer.question.model.path]
    for name, value in answer.keywords.items():
        words += [flag_name(name)] if value is True else [flag_name(name), str(value)]
    return words


def show(answer: Recommendation, kind: str) -> str:
    """The whole answer.

    Args:
        answer: the recommendation.
        kind: one of `FORMATS`.
    """
    if kind == "json":
        return as_json(answer)
    notes = "\n".join(_wrapped(line) for line in _notes(answer))
    return f"{_python(answer) if kind == 'python' else _command(answer)}\n\n{notes}"


def as_json(answer: Recommendation) -> str:
    """The answer as one JSON object."""
    question = answer.question
    found = {
        "model_path": question.model.path,
        "argv": ["python", "-m", "sglang.launch_server", *argv(answer)],
        "engine": {"model_path": question.model.path, **answer.keywords},
        "gpus": answer.gpus,
        "weights_gib_per_gpu": round(answer.weights_gib, 1),
        "kv_cache_tokens": answer.kv_tokens,
        "traffic": {
            "kind": question.traffic.kind, "requests_at_once": question.traffic.requests,
            "tokens_in": question.traffic.tokens_in, "tokens_out": question.traffic.tokens_out,
            "measured": question.traffic.measured,
        },
        "why": [{"flag": flag_name(f.name), "why": f.reason, "results": _files(f)} for f in answer.flags],
        "alternatives": [
            {"what": a.what, "why_not": a.reason, "results": _files(a)} for a in answer.alternatives
        ],
        "unknown": list(answer.unknown),
    }  # fmt: skip
    return json.dumps(found, indent=2)


def _command(answer: Recommendation) -> str:
    return shlex.join(["python", "-m", "sglang.launch_server", *argv(answer)])


def _python(answer: Recommendation) -> str:
    given = {"model_path": answer.question.model.path, **answer.keywords}
    lines = [f"        {name}={value!r}," for name, value in given.items()]
    start = [
        "import sglang",
        "",
        'if __name__ == "__main__":  # SGLang starts processes that import this file again',
    ]
    return "\n".join([*start, "    engine = sglang.Engine(", *lines, "    )"])


def _notes(answer: Recommendation) -> Iterator[str]:
    cache = (
        "no KV cache needed"
        if answer.kv_tokens is None
        else f"KV cache for about {answer.kv_tokens:,} tokens in all"
    )
    memory = f"{answer.gpus} of {answer.question.gpus} x {answer.question.gpu_gib:g} GiB"
    yield f"{memory}: about {answer.weights_gib:.1f} GiB of weights on each; {cache}"
    yield ""
    yield "Why"
    if not answer.flags:
        yield "  no flag: SGLang's own defaults"
    for flag in answer.flags:
        value = "" if flag.value is True else f" {flag.value}"
        yield f"  {flag_name(flag.name)}{value}: {flag.reason}{_cited(flag)}"
    yield "Considered"
    yield from (f"  {other.what}: {other.reason}{_cited(other)}" for other in answer.alternatives)
    yield "Not known"
    yield from (f"  {line}" for line in answer.unknown)


def _wrapped(line: str) -> str:
    """A line as comments, with nothing broken that could be copied."""
    return textwrap.fill(
        line, _WIDTH, initial_indent="# ", subsequent_indent="#     ", break_long_words=False, break_on_hyphens=False
    ).rstrip() or "#"  # fmt: skip


def _files(reasoned: Flag | Alternative) -> list[str]:
    """Results that a reason rests on, each once."""
    return list(dict.fromkeys(f.file for f in reasoned.figures))


def _cited(reasoned: Flag | Alternative) -> str:
    files = _files(reasoned)
    return f" ({', '.join(files)})" if files else ""
