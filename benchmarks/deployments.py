"""Deployments of the same GPUs that are compared, the arms of `shift_speed.py` and `all_on_speed.py`: their engines.

Engines of one model shape stand on the same GPUs at the same time and are asked in turn. SGLang sizes its KV cache by
the memory that is free once the weights are loaded, and takes the memory that went meanwhile for the weights' size. So
processes start at once but build their engines one at a time (`--together`: all at once, and no word on the weights'
memory), and every arm has KV slots for all tokens of the largest workload and no more: `max_total_tokens` (of replicas,
an Nth part each), the same memory in every arm. With `--one-after-another` each engine is alone and has SGLang's own
sizes; ratios are then of times minutes apart.
"""

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
from engine_child import FIRST_PORT, Child, check_plugins, in_turn, plugins
from record import Record, Records
from shapes import add_source, checkpoint, settle_source, swiftkv_folder
from workloads import Workload

from swiftkv.errors import SwiftKVError

# Of the memory that is free when an engine starts, 5 % is no room for its KV slots: the slots are bounded by tokens.
MEMORY = {"mem_fraction_static": 0.95}
# Beside others, a GPU may have less free memory than its neighbour, which SGLang otherwise refuses.
BESIDE = {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "false"}
SPARE = 1.02  # KV slots over those of the largest workload
# SGLang's own drafts; as many requests as the others have, where it would take 48.
NGRAM = {"speculative_algorithm": "NGRAM", "max_running_requests": 256}


@dataclass(frozen=True, slots=True)
class Arm:
    """A deployment.

    Attributes:
        title: what it is called; {gpus} and {sp} stand for numbers, {shift} for Shift Parallelism if there is any.
        ranks: "tp" or "dp", one of which counts all GPUs, or "sp": base tensor parallelism times sequence parallelism.
        stock: SGLang without this plugin.
        shifts: it changes its mode.
        swiftkv: it serves the SwiftKV model of the same sizes.
        head: it has a draft head.
        options: further keywords of `sglang.Engine`.
    """

    title: str
    ranks: str
    stock: bool = False
    shifts: bool = False
    swiftkv: bool = False
    head: bool = False
    options: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "tp": Arm("TP={gpus}", "tp", stock=True),
    "dp": Arm("DP={gpus}", "dp", stock=True),
    "sp": Arm("Ulysses, SP={sp}", "sp"),
    "shift": Arm("shift, SP={sp}", "sp", shifts=True),
    "tp-ngram": Arm("TP={gpus}, NGRAM", "tp", stock=True, options=NGRAM),
    "dp-ngram": Arm("DP={gpus}, NGRAM", "dp", stock=True, options=NGRAM),
    "swiftkv": Arm("{shift}SwiftKV", "sp", shifts=True, swiftkv=True),
    "all": Arm(
        "all on", "sp", shifts=True, swiftkv=True, head=True,
        options={"speculative_algorithm": "ARCTIC", "enable_suffix_decoding": True},
    ),
}  # fmt: skip


def titles(gpus: int, base_tp: int) -> dict[str, str]:
    """What each arm is called.

    Args:
        gpus: of a deployment.
        base_tp: GPUs that share one copy of the weights, in arms of sequence parallelism.
    """
    shift = "shift, " if gpus > base_tp else ""
    return {name: arm.title.format(gpus=gpus, sp=gpus // base_tp, shift=shift) for name, arm in ARMS.items()}


def doubles(gpus: int, base_tp: int) -> dict[str, str]:
    """Arms that are another one where there are so few GPUs, and which, by name."""
    found = {name: name.replace("dp", "tp") for name, arm in ARMS.items() if arm.ranks == "dp" and gpus == 1}
    plain = {name: "tp" for name, arm in ARMS.items() if arm.ranks == "sp" and not arm.swiftkv}
    return found | (plain if gpus == base_tp else {})


def chosen_options(arm: str, args: argparse.Namespace, head: Path | None = None) -> dict[str, Any]:
    """Keywords of `sglang.Engine` that make an arm what it is.

    Args:
        arm: its name.
        args: of the command line: `gpus`, `base_tp` and `threshold`.
        head: folder of the draft head, for an arm that has one.
    """
    kind, sequence = ARMS[arm], args.gpus // args.base_tp
    found: dict[str, Any]
    if kind.ranks == "sp":
        found = {"tp_size": args.base_tp}
        if sequence > 1:
            found["ulysses_sequence_parallel_size"] = sequence
    else:
        found = {f"{kind.ranks}_size": args.gpus}
    if kind.shifts and sequence > 1:
        found |= {"enable_shift_parallel": True, "shift_parallel_threshold": args.threshold}
    if kind.head:
        found["speculative_draft_model_path"] = str(head)
    return found | kind.options


def engine_options(
    arm: str, args: argparse.Namespace, tokens: int, head: Path | None = None
) -> dict[str, Any]:
    """Keywords of `sglang.Engine` for one arm.

    Args:
        arm: its name.
        args: of the command line.
        tokens: in all KV caches together at once.
        head: folder of the draft head, for an arm that has one.
    """
    kind = ARMS[arm]
    options = args.source.options | chosen_options(arm, args, head)
    if args.quantization:
        options["quantization"] = args.quantization
    on_cpu = common.hardware().startswith("CPU")
    replicas = args.gpus if kind.ranks == "dp" else 1
    if on_cpu or not args.one_after_another:
        options["max_total_tokens"] = tokens // replicas
    if not on_cpu and not args.one_after_another:
        options |= MEMORY
    if not on_cpu and kind.ranks != "dp":  # whose replicas find a port each
        options["nccl_port"] = FIRST_PORT + list(ARMS).index(arm)
    own = [] if kind.stock else args.shift_option
    return options | dict([*args.engine_option, *own])


def place(arm: str, args: argparse.Namespace, folder: Path) -> tuple[Path, Path | None]:
    """The folder with an arm's model, and the one with its draft head; what has to be written is written.

    Args:
        arm: its name.
        args: of the command line.
        folder: a temporary one, of all arms.

    Raises:
        SwiftKVError: a SwiftKV model cannot be made of the checkpoint.
    """
    kind, head = ARMS[arm], None
    with in_turn(str(folder / "placing")):
        if kind.swiftkv:
            model = swiftkv_folder(args.source, args.source.layout(), folder / "swiftkv", args.swiftkv_model)
        else:
            model = args.source.place(folder / "plain")
        if kind.head:
            head = args.draft_head or folder / "head"
            if not head.exists():
                write_head(args.source.config, head)
    return model, head


def write_head(config: dict[str, Any], folder: Path) -> None:
    """Writes a draft head of random weights, as wide as the model, 3 tokens a draft, as Snowflake's are."""
    import torch

    from speculative.speculators import SpeculatorConfig, build, save

    with torch.device("meta"):
        wanted = SpeculatorConfig.lstm(
            config["hidden_size"], config["hidden_size"], config["vocab_size"], scale_input=True
        )
        head = build(wanted)
    head = head.bfloat16().to_empty(device="cpu")
    torch.manual_seed(0)
    head.reset_parameters()
    save(head, folder)


def start(
    arm: str, args: argparse.Namespace, folder: Path, tokens: int, beside: bool
) -> Child | RuntimeError | SwiftKVError:
    """An arm's engine, or why there is none.

    Args:
        arm: its name.
        args: of the command line.
        folder: a temporary one, of all arms.
        tokens: in all KV caches together at once.
        beside: whether other engines are on the same GPUs.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{args.name}.{arm}.log"
    turn = folder / "turn" if beside and not args.together else None
    stock, replicas = ARMS[arm].stock, args.gpus if ARMS[arm].ranks == "dp" else 1
    child = None
    try:
        model, head = place(arm, args, folder)
        child = Child(
            model, engine_options(arm, args, tokens, head), plugins(stock=stock), log, args.limit_s,
            turn=turn, environment=BESIDE if beside else None,
        )  # fmt: skip
        check_plugins(arm, child.about["arguments"], stock=stock)
        slots = child.about["max_total_num_tokens"] * replicas
        if slots < tokens // SPARE:
            message = f"the {arm} engine has {slots} KV slots, and {tokens} are wanted: its figures would be of another"
            raise RuntimeError(message)
    except (RuntimeError, SwiftKVError) as error:
        if child is not None:
            child.close()
        return error
    print(f"{arm}: started in {child.about['startup_seconds']:.0f} s", flush=True)
    return child


@contextmanager
def engines(
    names: list[str], args: argparse.Namespace, record: Record | Records, tokens: int
) -> Iterator[dict[str, Child]]:
    """Those of these arms that started; what each says of itself is in the record."""
    beside = len(names) > 1
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with ThreadPoolExecutor(len(names)) as pool:
            found = dict(
                zip(names, pool.map(lambda a: start(a, args, folder, tokens, beside), names), strict=True)
            )
        running = {}
        for arm, child in found.items():
            options = engine_options(arm, args, tokens, args.draft_head or Path("FOLDER", "head"))
            if not isinstance(child, Child):
                record.arm(arm, {"options": options, "beside": beside})
                record.failed(arm, child)
                continue
            running[arm] = child
            memory = child.about["memory_gib_of_first_rank"] or {}
            weights = None if beside and args.together else memory.get("weight")
            about = {"options": options, "beside": beside, "weights_gib": weights, "about": child.about}
            record.arm(arm, about)
        try:
            yield running
        finally:
            for arm, child in running.items():
                child.close()
                if arm not in record.ended and not args.keep_logs:
                    child.log.unlink()


def measure(running: dict[str, Child], chosen: dict[str, Workload], repeats: int, record: Record) -> None:
    """Every workload, repeat by repeat, arm after arm; an arm that fails is left out from then on."""
    for name, load in chosen.items():
        figures: dict[str, list[float]] = {arm: [] for arm in running}
        for turn in range(1 + repeats):
            for arm in list(figures):
                try:
                    if turn:
                        figures[arm].append(load.figure(running[arm]))
                    else:
                        load.warm(running[arm])
                except RuntimeError as error:
                    record.failed(arm, error)
                    del figures[arm], running[arm]
        for arm, values in figures.items():
            record.add(arm, name, {"unit": load.unit, **common.summary(values)})


def add_options(options: argparse.ArgumentParser, arms: list[str]) -> None:
    """Adds what both benchmarks take.

    Args:
        options: of the command line.
        arms: those that are measured if none are named.
    """
    add_source(options)
    options.add_argument("--quantization", help="of all arms: fp8")
    options.add_argument("--gpus", type=int, default=4)
    options.add_argument("--base-tp", type=int, default=1, help="GPUs that share one copy of shift's weights")
    options.add_argument(
        "--threshold", default="auto", help="of shift: tokens up to which a step is tensor parallel"
    )
    options.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    options.add_argument("--workloads", nargs="+", metavar="NAME", help='names or kinds: "ttft 8192" decode')
    options.add_argument("--prefill-requests", type=int, default=32, help="prompts of the prefill workload")
    options.add_argument("--repeats", type=int, default=3)
    how = options.add_mutually_exclusive_group()
    how.add_argument("--together", action="store_true", help="build all engines at once")
    how.add_argument(
        "--one-after-another", action="store_true", help="each engine alone, with SGLang's own sizes"
    )
    extra = {"type": common.key_value, "action": "append", "default": [], "metavar": "KEY=VALUE"}
    options.add_argument(
        "--engine-option", **extra, help="another Engine keyword for all arms; again for more"
    )
    options.add_argument("--shift-option", **extra, help="the same for arms with this plugin")
    options.add_argument("--limit-s", type=float, default=600, help="seconds for one answer or start")
    options.add_argument("--keep-logs", action="store_true", help="keep the logs of engines that went well")
    options.add_argument("--fresh", action="store_true", help="do not merge into the JSON that is there")
    options.add_argument(
        "--swiftkv-model", type=checkpoint, metavar="FOLDER", help="the SwiftKV model made of --model"
    )
    options.add_argument("--draft-head", type=Path, metavar="FOLDER", help="of --model")


def settle(options: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fills in what depends on other options, and refuses what does not go together."""
    if args.gpus % args.base_tp:
        options.error(f"--base-tp {args.base_tp} does not divide --gpus {args.gpus}")
    same, usual = doubles(args.gpus, args.base_tp), options.get_default("arms")
    wrong = [arm for arm in args.arms if arm in same]
    if args.arms == usual and len(usual) - len(wrong) > 1:  # those that are left are a comparison
        args.arms, wrong = [arm for arm in usual if arm not in same], []
    if wrong:
        options.error(
            f"--arms {wrong[0]} is {same[wrong[0]]} with --gpus {args.gpus} --base-tp {args.base_tp}: more GPUs are "
            "wanted, or other arms"
        )
    if args.draft_head and not (args.draft_head / "config.json").is_file():
        options.error(
            f"--draft-head {args.draft_head} has no config.json: the folder of a draft head is wanted"
        )
    if args.swiftkv_model and not args.model:
        options.error("--swiftkv-model is compared with the checkpoint it was made of: give --model too")
    settle_source(args)


def most_tokens(known: dict[str, Workload], gpus: int) -> int:
    """Tokens that all KV caches together have room for: those of the largest workload and a few, for each GPU alike."""
    share = int(SPARE * max(load.tokens for load in known.values())) // gpus
    return -(-share // 1024) * 1024 * gpus
