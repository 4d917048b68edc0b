"""What engines of random prompts are asked in the benchmarks of speed: time to first token, prefill, decode, a mix."""

from dataclasses import dataclass

from engine_child import Batch, Child


@dataclass(frozen=True, slots=True)
class Workload:
    """What one measurement asks for.

    Attributes:
        kind: "ttft", "prefill", "decode" or "mix".
        requests: prompts of a batch.
        tokens_in: tokens of a prompt.
        tokens_out: tokens of an answer.
        warm_up: requests and tokens out of the first, unmeasured run.
        temperature: of the sampling.
    """

    kind: str
    requests: int
    tokens_in: int
    tokens_out: int
    warm_up: tuple[int, int]
    temperature: float = 0.0

    @property
    def unit(self) -> str:
        """The unit of the figure."""
        return {"ttft": "ms", "prefill": "tokens/s", "decode": "ms/token", "mix": "s"}[self.kind]

    @property
    def tokens(self) -> int:
        """Tokens in the KV cache when the last answer ends."""
        return self.requests * (self.tokens_in + self.tokens_out)

    def warm(self, child: Child) -> None:
        """The unmeasured run."""
        self._seconds(child, *self.warm_up)

    def figure(self, child: Child) -> float:
        """Runs it once."""
        seconds = self._seconds(child, self.requests, self.tokens_out)
        if self.kind == "prefill":
            return self.requests * self.tokens_in / seconds
        if self.kind == "decode":
            first = self._seconds(child, self.requests, 1)
            return 1000 * (seconds - first) / (self.tokens_out - 1)
        return 1000 * seconds if self.kind == "ttft" else seconds

    def _seconds(self, child: Child, requests: int, tokens_out: int) -> float:
        return child.run(Batch(requests, self.tokens_in, tokens_out, self.temperature))["seconds"]

    def faster(self, figure: float, reference: float) -> float:
        """How many times as fast as the reference."""
        return figure / reference if self.kind == "prefill" else reference / figure


def workloads(
    toy: bool,
    prefill_requests: int,
    prompts: tuple[int, ...],
    mix_requests: int = 256,
    temperature: float = 0.0,
) -> dict[str, Workload]:
    """All workloads by name.

    `ttft N` is one prompt of N tokens, `prefill` prompts of the longest of these, `decode N` N requests at once,
    `mix` requests of 2000 tokens in and 250 out.

    Args:
        toy: sizes that any machine runs.
        prefill_requests: prompts of the prefill.
        prompts: lengths of the prompts of `ttft`; of the toy, its own.
        mix_requests: of the mix.
        temperature: of all sampling.
    """
    decodes = (1, 64, 256)
    if toy:
        prompts, decodes = (128, 512), (1, 4)
    found = {f"ttft {tokens}": Workload("ttft", 1, tokens, 1, (1, 1), temperature) for tokens in prompts}
    warm_up = min(8, prefill_requests), 1
    found["prefill"] = Workload("prefill", prefill_requests, max(prompts), 1, warm_up, temperature)
    tokens_in, tokens_out = (32, 17) if toy else (128, 257)
    for requests in decodes:
        found[f"decode {requests}"] = Workload(
            "decode", requests, tokens_in, tokens_out, (requests, 17), temperature
        )
    mix = (8, 64, 16, (4, 16)) if toy else (mix_requests, 2000, 250, (64, 32))
    found["mix"] = Workload("mix", *mix, temperature)
    return found


def choose(names: list[str] | None, known: dict[str, Workload]) -> dict[str, Workload]:
    """The workloads of these names or kinds, in the order of the table; all of them for None.

    Raises:
        ValueError: there is none of that name.
    """
    for name in names or ():
        if name not in known and name not in {load.kind for load in known.values()}:
            message = f"no workload {name!r}; there are {', '.join(map(repr, known))}"
            raise ValueError(message)
    return {key: load for key, load in known.items() if not names or key in names or load.kind in names}
