"""Every claim that is measured here, and the commands that measure it. Pure; run by `run_all.py`.

In a command `{source}` stands for `--shape` with the claim's own, or for `--model` with a checkpoint, `{name}` for what
results call it (`{added}`: only if it is a checkpoint), `{embedding}` for nothing or `--model` with an embedding
checkpoint, `{embedded}` for the name of that, `{alone}` for `--one-after-another` if there is a checkpoint: nobody
knows whether several engines of it fit beside each other. `{work}` is a folder of the claim's own.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from shapes import Model

TEXTS = ("fresh", "repeats")  # of all_on_speed.py


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed, and how it is measured.

    Attributes:
        says: the claim.
        steps: commands, script and arguments, in this order; each is run whatever came of those before it.
        results: names of the JSON files, without the ending.
        gpus: that are needed.
        minutes: that it takes about; None: not known.
        shape: that `{source}` stands for without a checkpoint.
    """

    says: str
    steps: tuple[str, ...]
    results: tuple[str, ...]
    gpus: int = 0
    minutes: int | None = None
    shape: str | None = None

    @property
    def takes(self) -> str:
        """The option by which it is of a checkpoint; empty if there is none."""
        if any("{embedding}" in step for step in self.steps):
            return "--embedding-model"
        return "--model" if self.shape else ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the marks in commands stand for.

    Attributes:
        out: folder of the results.
        work: folder that gets one for each claim.
        model: a checkpoint, or None.
        embedding: an embedding checkpoint, or None.
        commit: to record; None: git's.
    """

    out: Path
    work: Path
    model: Model | None = None
    embedding: Model | None = None
    commit: str | None = None

    def commands(self, name: str, claim: Claim) -> list[list[str]]:
        """Script and arguments of each step."""
        shared = ["--out", str(self.out), *(["--commit", self.commit] if self.commit else [])]
        words = self._words(claim) | {"work": str(self.work / name)}
        made = []
        for step in claim.steps:
            script, *rest = [part for word in shlex.split(step) for part in self._filled(word, words)]
            made.append([f"benchmarks/{script}", *shared, *rest])
        return made

    def results(self, claim: Claim) -> list[str]:
        """Names of the JSON files."""
        return [result.format(**self._words(claim)) for result in claim.results]

    def _words(self, claim: Claim) -> dict[str, str]:
        embedded = f"_{self.embedding.title}" if self.embedding else ""
        name = self.model.title if self.model else claim.shape or ""
        return {"name": name, "added": f"_{name}" if self.model else "", "embedded": embedded}

    def _filled(self, word: str, words: dict[str, str]) -> list[str]:
        options = {
            "{source}": ["--model", str(self.model.folder)] if self.model else ["--shape", words["name"]],
            "{embedding}": ["--model", str(self.embedding.folder)] if self.embedding else [],
            "{alone}": ["--one-after-another"] if self.model else [],
        }  # fmt: skip
        return options[word] if word in options else [word.format(**words)]


def _speed(gpus: int) -> Claim:
    end = "" if gpus == 4 else f"_{gpus}"
    step = f"shift_speed.py {{source}} {{alone}} --gpus {gpus} --name shift_speed_{{name}}{end}"
    says = f"Shift Parallelism against TP={gpus} and DP={gpus}: one request, many, a mix"
    return Claim(says, (step,), (f"shift_speed_{{name}}{end}",), gpus, None, "llama-3.1-8b")


def _all_on(gpus: int) -> Claim:
    end = "" if gpus == 4 else f"_{gpus}"
    step = f"all_on_speed.py {{source}} {{alone}} --gpus {gpus} --name all_on_{{name}}{end}"
    rivals = f"TP={gpus}, DP={gpus} and SGLang's NGRAM"
    if gpus == 1:  # the KV cache of the other sizes has no room there
        step = step.replace("{alone}", "--one-after-another --mix-requests 64 --prefill-requests 16")
        rivals = "stock SGLang without and with NGRAM"
    says = f"everything on is first in latency and throughput: against {rivals}"
    return Claim(says, (step,), tuple(f"all_on_{{name}}{end}_{t}" for t in TEXTS), gpus, None, "llama-3.1-8b")


def _trace(gpus: int) -> Claim:
    end, arms = "" if gpus == 4 else f"_{gpus}", ("tp", "dp", "sp", "shift")
    steps = []
    for arm in arms:  # one after another: four servers fit beside each other on few GPUs
        steps += [
            f"shift_trace.py start --folder {{work}} {{source}} --gpus {gpus} --arms {arm}",
            f"shift_trace.py play --folder {{work}} --arm {arm}",
            f"shift_trace.py stop --folder {{work}} --arms {arm}",
        ]
    name = f"shift_trace_{{name}}{end}"
    steps.append(f"shift_trace.py report --folder {{work}} --name {name}")
    says = f"Shift Parallelism is first, or near it, over traffic with bursts on {gpus} GPUs"
    return Claim(
        says, tuple(steps), (name,), gpus, 20, "llama-3.1-8b"
    )  # 4 x 5 minutes of trace, without the starts


CLAIMS = {
    "plugin_overhead": Claim(
        "an installed but unused plugin costs under 1 %", ("plugin_overhead.py",), ("plugin_overhead",), 1
    ),
    "device_parity": Claim(
        "the tiny model says the same on a GPU as on the CPU", ("device_parity.py",), ("device_parity",), 1
    ),
    "swiftkv": Claim(
        "SwiftKV against stock SGLang, bf16, one GPU", ("swiftkv_prefill.py {source}",), ("swiftkv_{name}",), 1, 6,
        "llama-3.1-8b",
    ),
    "swiftkv_fp8": Claim(
        "SwiftKV against stock SGLang, fp8, one GPU", ("swiftkv_prefill.py {source} --quantization fp8",),
        ("swiftkv_{name}_fp8",), 1, 6, "llama-3.1-8b",
    ),
    "swiftkv_tp4": Claim(
        "SwiftKV against stock SGLang, 70B, TP 4", ("swiftkv_prefill.py {source} --tp-size 4 --prefill-requests 16",),
        ("swiftkv_{name}_tp4",), 4, None, "llama-3.1-70b",
    ),
    "speculation_speed": Claim(
        "suffix decoding costs nothing where it finds nothing, and is faster where text repeats",
        ("speculation_speed.py {source}",), ("speculation_speed{added}",), 1, None, "llama-3.1-8b",
    ),
    "speculation_acceptance": Claim(
        "head and index accept more than either, on text", ("speculation_acceptance.py",), ("speculation_acceptance",),
        1,
    ),
    "speculator_draft": Claim("what a draft of the head costs", ("speculator_draft.py",), ("speculator_draft",), 1),
    "suffix_index": Claim(
        "the suffix index's time and memory, without the peer", ("suffix_index.py",), ("suffix_index",)
    ),
    "embed_speed": Claim(
        "texts to vectors at the GPU's speed", ("embed_speed.py {embedding}",), ("embed_speed{embedded}",), 1
    ),
    "embed_cpu": Claim(
        "on a CPU embed is at least as fast as sentence-transformers", ("embed_cpu.py",), ("embed_cpu",), 0, 10
    ),
    "batch_bounded": Claim(
        "a table of any size at a bounded memory", ("batch_bounded.py",), ("batch_bounded",), 0, 4
    ),
    "batch_peers": Claim(
        "the http engine beside Ray Data LLM, Daft and plain loops", ("batch_peers.py",), ("batch_peers",), 0, 20
    ),
    "batch_thin": Claim(
        "a whole batch job at the speed of SGLang's offline benchmark", ("batch_thin.py",), ("batch_thin",), 1
    ),
    "batch_prefix": Claim(
        "prefix ordering beats table order where prefixes exceed the cache", ("batch_prefix.py",), ("batch_prefix",),
        1, 6,
    ),
    "batch_prefix_full_cache": Claim(
        "the same with all of the GPU's memory", ("batch_prefix.py --cache-tokens 0 --name batch_prefix_full_cache",),
        ("batch_prefix_full_cache",), 1,
    ),
    **{
        f"shift_exchange_{gpus}": Claim(
            f"exchanges by pushes against NCCL, {gpus} GPUs", (f"shift_exchange.py --ranks {gpus}",),
            (f"shift_exchange_{gpus}",), gpus,
        )
        for gpus in (2, 4, 8)
    },
    **{f"shift_speed_{gpus}": _speed(gpus) for gpus in (2, 4, 8)},
    "shift_speed_fp8": Claim(
        "the same, 70B in fp8, one engine after another",
        ("shift_speed.py {source} --quantization fp8 --one-after-another",), ("shift_speed_{name}_fp8",), 4, None,
        "llama-3.3-70b",
    ),
    "shift_soak": Claim(
        "after an hour's worth of random requests a server answers as before", (
            "shift_soak.py model --folder {work}/model",
            "shift_trace.py start --folder {work} --model {work}/model --gpus 2 --arms shift --radix-cache",
            "shift_soak.py soak --folder {work} --arm shift",
            "shift_trace.py stop --folder {work}",
        ), ("shift_soak",), 2,
    ),
    **{f"all_on_{gpus}": _all_on(gpus) for gpus in (1, 2, 4, 8)},
    "all_on_fp8": Claim(
        "the same, 70B in fp8, one engine after another",
        ("all_on_speed.py {source} --quantization fp8 --one-after-another",),
        tuple(f"all_on_{{name}}_fp8_{text}" for text in TEXTS), 4, None, "llama-3.3-70b",
    ),
    "all_on_soak": Claim(
        "the same of a server with everything on", (
            "shift_soak.py model --folder {work}/model --everything",
            "shift_trace.py start --folder {work} --model {work}/model/swiftkv --draft-head {work}/model/head --gpus 2 "
            "--arms all --radix-cache",
            "shift_soak.py soak --folder {work} --arm all --name all_on_soak",
            "shift_trace.py stop --folder {work}",
        ), ("all_on_soak",), 2,
    ),
    **{f"shift_trace_{gpus}": _trace(gpus) for gpus in (2, 4, 8)},
}  # fmt: skip
