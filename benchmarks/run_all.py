"""Measures every claim that this machine can, one after another, and makes the report of it.

    python benchmarks/run_all.py                                # what the GPUs here are enough for
    python benchmarks/run_all.py --model FOLDER                 # the same with a checkpoint and its weights
    python benchmarks/run_all.py --only swiftkv shift_speed_4   # some
    python benchmarks/run_all.py --list                         # claims, GPUs, minutes
    python benchmarks/run_all.py --dry-run --gpus 8             # the commands for a machine with 8 GPUs

Each command is a process of its own; one that fails stops none of the others. JSON files and report.html are in `<out>`
(out/benchmarks), what the commands print is in `<out>/runs/<time>/<claim>/log.txt`. With `--model` the claims that take
one, as `--list` says, have that model's sizes and weights instead of dummies; prompts are random token ids all the
same. A checkpoint has to fit on as many GPUs as a claim uses: leave out with `--skip` those for which it does not.
"""

import argparse
import datetime
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from claims import CLAIMS, Chosen, Claim
from shapes import checkpoint

ROOT = Path(__file__).parents[1]
LOG = "log.txt"


def gpus_here() -> int:
    """GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def left_out(names: list[str], skip: list[str], gpus: int) -> dict[str, str]:
    """Why claims are not measured, by name."""
    reasons = {}
    for name in names:
        needed = CLAIMS[name].gpus
        if name in skip:
            reasons[name] = "--skip"
        elif needed > gpus:
            reasons[name] = (
                f"needs {needed} GPU{'s' * (needed > 1)}, and there {'is' if gpus == 1 else 'are'} {gpus}"
            )
    return reasons


def listed(chosen: Chosen) -> str:
    """The table of all claims."""
    form = "{:<25}{:>5}{:>9}  {:<18} {:<34} {}"
    lines = [form.format("claim", "GPUs", "minutes", "takes", "result", "what is claimed")]
    for name, claim in CLAIMS.items():
        minutes = "unknown" if claim.minutes is None else str(claim.minutes)
        results = " ".join(f"{result}.json" for result in chosen.results(claim))
        lines.append(form.format(name, claim.gpus, minutes, claim.takes, results, claim.says))
    return "\n".join(lines)


def measure(name: str, claim: Claim, chosen: Chosen) -> str | None:
    """Runs a claim's commands; what went wrong, or None. On Ctrl-C what was started is still stopped."""
    commands = chosen.commands(name, claim)
    folder = chosen.work / name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    wrong = []
    with log.open("w", encoding="utf-8") as stream:
        for index, command in enumerate(commands):
            try:
                code = _run(command, stream)
            except KeyboardInterrupt:
                for ending in commands[index + 1 :]:
                    if "stop" in ending:
                        _run(ending, stream)
                raise
            if code:
                step = f" (command {index + 1} of {len(commands)})" if len(commands) > 1 else ""
                wrong.append(f"{command[0]}{step} ended with {code}")
    return f"{'; '.join(wrong)}; {log} says more" if wrong else None


def _run(command: list[str], stream: TextIO) -> int:
    print(f"$ python {shlex.join(command)}", file=stream, flush=True)
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
        check=False,
    ).returncode  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", nargs="+", choices=CLAIMS, metavar="NAME", help="these claims alone")
    options.add_argument("--skip", nargs="+", choices=CLAIMS, metavar="NAME", default=[], help="not these")
    options.add_argument("--model", type=checkpoint, metavar="FOLDER", help="a checkpoint with its weights")
    options.add_argument(
        "--embedding-model", type=checkpoint, metavar="FOLDER", help="the same, for embeddings"
    )
    options.add_argument(
        "--out", type=Path, default=ROOT / "out" / "benchmarks", help="folder of the results"
    )
    options.add_argument("--commit", help="commit to record where there is no git")
    options.add_argument("--gpus", type=int, help="use so many at most (all that torch sees)")
    options.add_argument("--list", action="store_true", help="say what there is, and end")
    options.add_argument("--dry-run", action="store_true", help="print the commands, and end")
    return options.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measures, makes the report, says what failed and what was left out; 1 if a claim failed."""
    args = parse(argv)
    out, now = args.out.resolve(), datetime.datetime.now(datetime.UTC)
    work = out / "runs" / now.strftime("%Y%m%d-%H%M%S")
    chosen = Chosen(out, work, args.model, args.embedding_model, args.commit)
    if args.list:
        print(listed(chosen))
        return 0
    names = [name for name in CLAIMS if name in (args.only or CLAIMS)]
    reasons = left_out(names, args.skip, gpus_here() if args.gpus is None else args.gpus)
    failed = {}
    for name in [name for name in names if name not in reasons]:
        if args.dry_run:
            print(f"# {name}")
            print(
                "\n".join(f"python {shlex.join(command)}" for command in chosen.commands(name, CLAIMS[name]))
            )
            continue
        print(f"{name}: {CLAIMS[name].says} ...", flush=True)
        started = time.monotonic()
        wrong = measure(name, CLAIMS[name], chosen)
        minutes = f"{(time.monotonic() - started) / 60:.1f} minutes"
        print(f"  {f'FAILED after {minutes}: {wrong}' if wrong else minutes}", flush=True)
        if wrong:
            failed[name] = wrong
    if not args.dry_run:
        args.out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--results", str(chosen.out)]
        subprocess.run(command, check=True)
    for name, why in reasons.items():
        print(f"{'# ' * args.dry_run}{name} left out: {why}")
    for name, wrong in failed.items():
        print(f"{name} failed: {wrong}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
