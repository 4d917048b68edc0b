"""Claim: after an hour's worth of random requests, some cut off, a server answers as before and has lost no KV slot.

The server runs already (`shift_trace.py start --model M`), with weights that say something: dummy ones give every token
the same probability, and no wrong answer would show.

    python benchmarks/shift_soak.py model --folder M                   # random weights, 4 layers as wide as the 8B's
    python benchmarks/shift_trace.py start --folder OUT --model M --arms shift --radix-cache
    python benchmarks/shift_soak.py soak --folder OUT --arm shift --seconds 120
    python benchmarks/shift_soak.py model --folder M --shape toy            # any machine
    python benchmarks/shift_soak.py model --folder M --everything           # M/swiftkv and M/head beside it, and then
    python benchmarks/shift_trace.py start --folder OUT --model M/swiftkv --draft-head M/head --arms all --radix-cache
    python benchmarks/shift_soak.py soak --folder OUT --arm all --name all_on_soak

An hour's worth is as many requests as Azure's code trace has in one (2.57 a second), sent in `--seconds`, in bursts.
Prompts have 1 to 8192 tokens, answers 1 to 128, both log-uniform; a fifth of the connections is closed early, from at
once to after ten tokens; a third of the prompts begins like a fixed one, as far as both go. Fixed prompts are asked one
by one before and after; log-probabilities of prompts and greedy answers, up to the first other token, may differ by
`--tolerance` at most. They are asked amid the traffic too, where mode, batch and what of them is cached are whatever
they are: there their mean difference may be `--busy-tolerance`. Half of those are asked from their middle on, since
SGLang computes again what log-probabilities are asked of.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import common
from deployments import write_head
from http_stream import body, session, stream
from servers import ask
from shapes import MODELS, Model, swiftkv_folder
from shift_trace import read_state, told

HOUR = round(3600 * 2.57)
LENGTHS = (1, 2, 3, 5, 17, 64, 129, 500, 1000, 2047, 4096, 8191)  # of the fixed prompts
FIXED_TOKENS = 16
# Standard deviation that log-probabilities must have over tokens, or answers could not be told apart.
LEAST_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Step:
    """One request of the soak.

    Attributes:
        at: seconds from the beginning.
        tokens_in: tokens of the prompt.
        tokens_out: tokens of the answer.
        stop_after: messages after which the client hangs up; None: never.
        fixed: which fixed prompt it is instead; None: a random one.
        like: which fixed prompt a random one begins like; None: none.
    """

    at: float
    tokens_in: int
    tokens_out: int
    stop_after: int | None
    fixed: int | None
    like: int | None


def plan(requests: int, seconds: float, longest: int, fixed: int, seed: int) -> list[Step]:
    """Random requests, sorted by time: half of them single, half in bursts of 2 to 256 at once."""
    draw = random.Random(seed)
    made: list[Step] = []
    while len(made) < requests:
        at, size = draw.uniform(0, seconds), 1
        if draw.random() < 0.02:
            size = round(_log_uniform(draw, 2, 256))
        for _ in range(min(size, requests - len(made))):
            chosen = draw.randrange(fixed) if draw.random() < 0.05 else None
            stop = draw.randint(0, 10) if chosen is None and draw.random() < 0.2 else None
            lengths = round(_log_uniform(draw, 1, longest)), round(_log_uniform(draw, 1, 128))
            like = draw.randrange(fixed) if draw.random() < 1 / 3 else None
            made.append(Step(at, *lengths, stop, chosen, like))
    return sorted(made, key=lambda step: step.at)


def _log_uniform(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a server said of a fixed prompt.

    Attributes:
        prompt: log-probabilities of its tokens but the first.
        tokens: of the greedy answer.
        answer: their log-probabilities.
    """

    prompt: list[float]
    tokens: list[int]
    answer: list[float]

    @classmethod
    def of(cls, reply: dict[str, Any]) -> "Spoken":
        """Reads an answer of `/generate` with `return_logprob`."""
        about = reply["meta_info"]
        prompt = [entry[0] for entry in about["input_token_logprobs"] if entry[0] is not None]
        answer = about["output_token_logprobs"]
        return cls(prompt, [entry[1] for entry in answer], [entry[0] for entry in answer])


# Of a fixed prompt amid the traffic: which, from which token on, and what was said.
Busy = tuple[int, int, Spoken]


def differences(before: Spoken, after: Spoken) -> list[float]:
    """Absolute differences of log-probabilities: of the prompt, and of the answer up to and with the first other token.

    At that one the best log-probabilities are compared, which are close where two tokens are. A difference that is no
    number is infinite.

    Raises:
        ValueError: they are not of the same prompt or number of tokens.
    """
    if (len(before.prompt), len(before.tokens)) != (len(after.prompt), len(after.tokens)):
        message = f"{len(after.prompt)}, {len(after.tokens)} log-probabilities came, {len(before.prompt)}, "
        raise ValueError(message + f"{len(before.tokens)} were there before")
    pairs = list(zip(before.prompt, after.prompt, strict=True))
    for index, (mine, yours) in enumerate(zip(before.tokens, after.tokens, strict=True)):
        pairs.append((before.answer[index], after.answer[index]))
        if mine != yours:
            break
    found = [abs(a - b) for a, b in pairs]
    return [value if math.isfinite(value) else math.inf for value in found]


class Soak:
    """The traffic and what came of it.

    Args:
        url: of the server.
        vocab: tokens of its vocabulary.
        longest: tokens of the longest prompt.
        limit: seconds without a byte after which a request hangs.
        seed: of the prompts.
    """

    def __init__(self, url: str, vocab: int, longest: int, limit: float, seed: int) -> None:
        self.url, self.limit = url, limit
        self._draw, self._vocab = random.Random(seed), range(3, vocab)
        self.fixed = [self._ids(tokens) for tokens in LENGTHS if tokens <= longest]
        self.counts = {"whole": 0, "hung_up": 0, "fixed": 0}
        self.failed: list[str] = []
        self.busy: list[Busy] = []

    def _ids(self, tokens: int) -> list[int]:
        return self._draw.choices(self._vocab, k=tokens)

    async def speak(self, http: aiohttp.ClientSession, index: int, start: int = 0) -> Spoken:
        """Asks a fixed prompt, and the log-probabilities of its tokens behind the one at `start`."""
        sampling = {"temperature": 0, "max_new_tokens": FIXED_TOKENS, "ignore_eos": True}
        wanted = {"input_ids": self.fixed[index], "sampling_params": sampling}
        wanted |= {"return_logprob": True, "logprob_start_len": start}
        async with http.post(f"{self.url}/generate", json=wanted) as reply:
            if reply.status != 200:
                message = f"fixed prompt {index}: {reply.status}, {(await reply.text())[:300]}"
                raise RuntimeError(message)
            return Spoken.of(await reply.json())

    async def alone(self) -> list[Spoken]:
        """All fixed prompts, one after the other, none of them from the cache."""
        found = []
        async with session(self.limit) as http:
            for index in range(len(self.fixed)):
                async with http.post(f"{self.url}/flush_cache") as reply:
                    await reply.read()
                found.append(await self.speak(http, index))
        return found

    async def run(self, steps: list[Step]) -> float:
        """Sends everything at its time and waits for all of it; the seconds that took."""
        began = time.monotonic()
        async with session(self.limit) as http:
            await asyncio.gather(*(self._one(http, began, step) for step in steps))
        return time.monotonic() - began

    async def _one(self, http: aiohttp.ClientSession, began: float, step: Step) -> None:
        await asyncio.sleep(began + step.at - time.monotonic())
        if step.fixed is not None:
            start = len(self.fixed[step.fixed]) // 2 if step.tokens_in % 2 else 0
            try:
                self.busy.append((step.fixed, start, await self.speak(http, step.fixed, start)))
                self.counts["fixed"] += 1
            except (RuntimeError, aiohttp.ClientError, TimeoutError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            return
        begin = [] if step.like is None else self.fixed[step.like][: step.tokens_in]
        data = body(begin + self._ids(step.tokens_in - len(begin)), step.tokens_out)
        answer = await stream(http, self.url, data, step.stop_after)
        if answer.error is not None:
            self.failed.append(answer.error)
        elif step.stop_after is not None and answer.tokens < step.tokens_out:
            self.counts["hung_up"] += 1
        elif answer.tokens != step.tokens_out:
            self.failed.append(f"{answer.tokens} tokens came, and {step.tokens_out} were asked for")
        else:
            self.counts["whole"] += 1


def left(url: str, limit: float) -> dict[str, int]:
    """Requests and KV slots that a server still holds once it is idle, or after `limit` seconds."""
    until = time.monotonic() + limit
    while True:
        loads = ask(f"{url}/v1/loads?include=core")["loads"]
        names = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")
        held = {name: sum(load[name] for load in loads) for name in names}
        if not any(held.values()) or time.monotonic() > until:
            return held
        time.sleep(0.5)


def judge(
    before: list[Spoken],
    after: list[Spoken],
    busy: list[Busy],
    tolerance: float,
    busy_tolerance: float,
) -> dict[str, Any]:
    """Differences of the fixed prompts after and amid the traffic, and whether they are small.

    Raises:
        ValueError: the model gives all tokens the same probability.
    """
    spread = statistics.pstdev([value for spoken in before for value in spoken.prompt])
    if spread < LEAST_SPREAD:
        message = (
            f"log-probabilities have a spread of {spread:.4f}: no wrong answer would show; give real weights"
        )
        raise ValueError(message)
    alone = max(max(differences(a, b), default=0.0) for a, b in zip(before, after, strict=True))
    then = [dataclasses.replace(before[i], prompt=before[i].prompt[start:]) for i, start, _ in busy]
    means = [statistics.fmean(differences(a, spoken)) for a, (_, _, spoken) in zip(then, busy, strict=True)]
    return {
        "spread": round(spread, 4), "tolerance": tolerance, "busy_tolerance": busy_tolerance,
        "largest_difference_after": alone,
        "same_tokens_after": sum(a.tokens == b.tokens for a, b in zip(before, after, strict=True)),
        "largest_mean_difference_busy": max(means, default=0.0),
        "same_tokens_busy": sum(before[i].tokens == spoken.tokens for i, _, spoken in busy), "asked_busy": len(busy),
        "ok": alone <= tolerance and max(means, default=0.0) <= busy_tolerance,
    }  # fmt: skip


def soak(args: argparse.Namespace) -> int:
    """Soaks a running server; 1 if anything is not as before."""
    server = read_state(args.folder)[args.arm]
    url = server["url"]
    config = json.loads((Path(server["model"]) / "config.json").read_text())
    work = Soak(url, config["vocab_size"], args.longest, args.limit_s, args.seed)
    steps = plan(args.requests, args.seconds, args.longest, len(work.fixed), args.seed)
    shift = told(url)["shift"]
    before = asyncio.run(work.alone())
    judge(before, before, [], args.tolerance, args.busy_tolerance)  # whether the model can show anything
    seconds = asyncio.run(work.run(steps))
    held = left(url, args.limit_s)
    after = asyncio.run(work.alone())
    answers = judge(before, after, work.busy, args.tolerance, args.busy_tolerance)
    content = {
        "model": {name: config[name] for name in ("model_type", "hidden_size", "num_hidden_layers")},
        "arm": args.arm, "options": server["options"], "requests": len(steps), "asked_seconds": args.seconds,
        "seconds": round(seconds, 2), **work.counts, "failed": len(work.failed), "failures": work.failed[:10],
        "held_when_idle": held, "answers": answers, "shift_before": shift, "shift_after": told(url)["shift"],
    }  # fmt: skip
    content["ok"] = answers["ok"] and not work.failed and not any(held.values())
    common.write(args.name, content, args.out, args.commit)
    return 0 if content["ok"] else 1


def model(args: argparse.Namespace) -> int:
    """Writes a model of random weights that are wide enough to tell tokens apart."""
    import torch
    import transformers

    torch.manual_seed(args.seed)
    fields = {
        k: v
        for k, v in MODELS[args.shape].config.items()
        if k not in ("architectures", "model_type", "torch_dtype")
    }
    fields["num_hidden_layers"] = args.layers
    config = transformers.AutoConfig.for_model(MODELS[args.shape].config["model_type"], **fields)
    dtype = torch.float32 if args.shape == "toy" else torch.bfloat16
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 1.2 / config.hidden_size**0.5)
    made.save_pretrained(args.folder)
    if args.everything:
        kept = json.loads((args.folder / "config.json").read_text())
        plain = Model(args.shape, kept, args.layers // 2, args.folder)
        swiftkv_folder(plain, plain.layout(), args.folder / "swiftkv")
        write_head(kept, args.folder / "head")
    return 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = common.parser(__doc__)
    made = options.add_subparsers(required=True, dest="step")
    steps = {step.__name__: made.add_parser(step.__name__, help=step.__doc__) for step in (model, soak)}
    for name, step in steps.items():
        step.add_argument("--folder", type=Path, required=True, help="of the model, or of the servers' state")
        step.add_argument("--seed", type=int, default=0)
        step.set_defaults(run=globals()[name])
    steps["model"].add_argument("--shape", choices=MODELS, default="llama-3.1-8b")
    steps["model"].add_argument("--layers", type=int, default=4)
    steps["model"].add_argument(
        "--everything", action="store_true", help="a SwiftKV model of it and a draft head too"
    )
    one = steps["soak"]
    one.add_argument("--arm", default="shift")
    one.add_argument("--seconds", type=float, default=120)
    one.add_argument("--requests", type=int, default=HOUR)
    one.add_argument("--longest", type=int, default=8192, help="tokens of a prompt")
    one.add_argument(
        "--tolerance", type=float, default=0.05, help="natural log, one by one, before against after"
    )
    one.add_argument("--busy-tolerance", type=float, default=0.25, help="mean of a prompt, amid the traffic")
    one.add_argument("--limit-s", type=float, default=120, help="seconds without a byte that are a hang")
    one.add_argument("--name", default="shift_soak", help="of the JSON")
    return options.parse_args(argv)


def main() -> int:
    """Runs one step."""
    args = parse()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
