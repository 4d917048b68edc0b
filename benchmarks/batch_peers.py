"""Claim: how this SDK's http engine compares with Ray Data LLM, Daft and a plain asyncio loop on the same rows.

Each peer reads the same Parquet files, asks the same OpenAI-compatible server, and writes Parquet; every client runs
in processes of its own, as often as `--repeats`, the peers in turn. The server is `peer_server.py`, which has no model:
what is measured is the client. Then every peer meets a row that is refused, a null, and a row that takes the server
down, once as it is by default and once with the options that its documentation has for rows that fail; and gets
SIGKILL in the middle, and is started again.

    python benchmarks/batch_peers.py                                     # what is installed here; some 20 minutes
    python benchmarks/batch_peers.py --daft-python /venvs/daft/bin/python
    python benchmarks/batch_peers.py --parts engines --model examples/tiny_lm/model    # a real SGLang, on the CPU

Daft: `pip install 'daft[openai]' 'ray[default]'`; Ray Data LLM: `pip install 'ray[data,llm]'` or, for the processors
that are run here, `ray[data] aiohttp sglang`. A peer that is not installed is named as absent in the result. Peaks are
PSS summed over a client's processes, every 0.2 s. The server has the first core, the clients have the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import peer_clients
import peer_server
from peer_runs import Peer, ask, look, write_table

PARTS = ("speed", "unbounded", "poison", "kill", "engines")
HTTP_PEERS = ("batch_sdk", "asyncio_aiohttp", "asyncio_openai", "daft", "ray_http")
ENGINE_PEERS = (*HTTP_PEERS, "batch_sdk_sglang", "ray_sglang")
RESUMABLE = ("batch_sdk", "daft", "ray_http")
POISONS = {
    "too_long": "row {row}: " + "word " * 4000,
    "null": None,
    "kills_the_server": "row {row}: " + peer_server.KILLER,
}


@dataclass
class Bench:
    """What all parts share.

    Args:
        folder: where tables, outputs and logs go.
        work: the job of which each run is a variation.
    """

    folder: Path
    url: str
    peers: list[Peer]
    work: peer_clients.Work
    limit: float
    runs: int = 0

    def fresh(self, **fields: Any) -> peer_clients.Work:
        """The job with an output folder of its own."""
        self.runs += 1
        return replace(self.work, output=self.folder / f"out{self.runs}", **fields)

    def log(self) -> Path:
        """The log of the newest run."""
        return self.folder / f"log{self.runs}"


def speed(bench: Bench, rows: int, repeats: int, slow: list[str]) -> dict[str, Any]:
    """Rows a second and memory, peers in turn.

    Args:
        slow: peers that are left out.
    """
    table = bench.folder / f"rows{rows}"
    write_table(table, rows, bench.work.file_rows)
    runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in bench.peers if peer.name not in slow}
    for _ in range(repeats):
        for peer in bench.peers:
            if peer.name in slow:
                continue
            ask(bench.url, "/reset", post=True)
            work = bench.fresh(input=table)
            run = peer.run(work, bench.log(), limit=bench.limit)
            run["server"] = ask(bench.url, "/stats")
            run["output"] = look(work.output, rows)
            runs[peer.name].append(run)
            print(f"{rows} rows, {peer.name}: {run}", file=sys.stderr, flush=True)
    return {name: _speed_of(found, rows) for name, found in runs.items()}


def _speed_of(runs: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    right = [run for run in runs if run["output"]["right"] == run["output"]["rows"] == rows]
    if not right:
        return {"all_rows_right": False, "runs": runs}
    flow = [rows / run["server"]["seconds"] for run in right]
    return {
        "all_rows_right": len(right) == len(runs),
        "rows_per_second_while_asking": common.summary(flow),
        "rows_per_second_whole_command": common.summary([rows / run["seconds"] for run in right]),
        "peak_mb": common.summary([run["peak_mb"] for run in right]),
        "rows_per_cpu_second": common.summary([rows / run["cpu_seconds"] for run in right]),
        "runs": runs,
    }


def unbounded(bench: Bench, rows: list[int]) -> dict[str, Any]:
    """The two peers whose rows in flight are bounded from outside, as they are without that."""
    found: dict[str, Any] = {}
    for peer in bench.peers:
        if peer.name not in peer_clients.ENVIRONMENT:
            continue
        for count in rows:
            table = bench.folder / f"{peer.name}_unbounded{count}"
            write_table(table, count, bench.work.file_rows)
            ask(bench.url, "/reset", post=True)
            work = bench.fresh(input=table, concurrency=0)
            run = peer.run(work, bench.log(), limit=60.0)
            run |= {"server": ask(bench.url, "/stats"), "output": look(work.output, count)}
            found.setdefault(peer.name, {})[str(count)] = run
            print(f"unbounded, {count} rows, {peer.name}: {run}", file=sys.stderr, flush=True)
    return found


def poison(bench: Bench, rows: int) -> dict[str, Any]:
    """One bad row in the middle of a table."""
    found: dict[str, Any] = {}
    bad = rows // 2
    for kind, body in POISONS.items():
        table = bench.folder / f"poison_{kind}"
        write_table(table, rows, max(1, rows // 4), {bad: body and body.format(row=bad)})
        for peer in bench.peers:
            for tolerant in (False, True):
                ask(bench.url, "/reset", post=True)
                work = bench.fresh(input=table, tolerant=tolerant)
                run = peer.run(work, bench.log(), limit=bench.limit)
                time.sleep(peer_server.DOWN_SECONDS + 0.2)
                run |= {"server": ask(bench.url, "/stats"), "output": look(work.output, rows, bad)}
                mode = "with its options for errors" if tolerant else "by default"
                found.setdefault(kind, {}).setdefault(peer.name, {})[mode] = run
                print(f"{kind}, {peer.name} {mode}: {run}", file=sys.stderr, flush=True)
    return found


def kill(bench: Bench, rows: int) -> dict[str, Any]:
    """SIGKILL of the process that was started when half of the rows have been asked; then the same command again."""
    table = bench.folder / "kill"
    write_table(table, rows, max(1, rows // 8))
    found: dict[str, Any] = {}
    for peer in bench.peers:
        for resumable in (False, True):
            if resumable and peer.name not in RESUMABLE:
                continue
            state = bench.folder / f"state_{peer.name}" if resumable else None
            if state is not None:
                state.mkdir()
            work = bench.fresh(input=table, state=state, file_rows=max(1, rows // 8))
            ask(bench.url, "/reset", post=True)

            def half() -> bool:
                return ask(bench.url, "/stats")["requests"] >= rows / 2

            first = peer.run(work, bench.log(), limit=bench.limit, kill_when=half)
            after = look(work.output, rows)
            second = peer.run(work, bench.log(), limit=bench.limit)
            story = {
                "killed": first, "output_after_kill": after, "again": second,
                "output_at_the_end": look(work.output, rows), "server": ask(bench.url, "/stats"),
            }  # fmt: skip
            mode = "with its way to resume" if resumable else "by default"
            found.setdefault(peer.name, {})[mode] = story
            print(f"kill, {peer.name} {mode}: {story}", file=sys.stderr, flush=True)
    return found


def engines(bench: Bench, rows: int, model: Path, repeats: int) -> dict[str, Any]:
    """A real SGLang on the CPU: the http peers against its server, then those that hold an engine themselves."""
    table = bench.folder / "engines"
    write_table(table, rows, max(1, rows // 4))
    runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in bench.peers}

    def once(peer: Peer, url: str) -> None:
        work = bench.fresh(input=table, url=url, model=str(model))
        run = peer.run(work, bench.log(), limit=bench.limit) | {"output": look(work.output, rows)}
        runs[peer.name].append(run)
        print(f"engines, {peer.name}: {run}", file=sys.stderr, flush=True)

    served = [peer for peer in bench.peers if peer.name in HTTP_PEERS]
    if served:
        with _sglang(bench, model) as url:
            for peer in served * (repeats + 1):  # the first round warms the server up and does not count
                once(peer, url)
    for peer in bench.peers:
        if peer not in served:
            once(peer, "")
    return {name: _engines_of(name, found) for name, found in runs.items()}


@contextmanager
def _sglang(bench: Bench, model: Path) -> Iterator[str]:
    port = int(bench.url.rsplit(":", 1)[1]) + 1
    url = f"http://127.0.0.1:{port}"
    arguments = ["--model-path", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with (bench.folder / "sglang.log").open("w") as log:
        command = [sys.executable, "-m", "sglang.launch_server", *arguments]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(url + "/health_generate", 180.0)
            yield url
        finally:
            server.terminate()
            server.wait(30)


def _engines_of(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    counted = runs[1:] if name in HTTP_PEERS else runs
    return {
        "seconds": common.summary([run["seconds"] for run in counted]),
        "peak_mb": common.summary([run["peak_mb"] for run in counted]),
        "runs": runs,
    }


def _wait(url: str, seconds: float) -> None:
    base, path = url.rsplit("/", 1)
    end = time.monotonic() + seconds
    while True:
        try:
            ask(base, "/" + path)
        except ValueError:  # it answers, and not with JSON
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def _peers(args: Any, cpus: set[int] | None) -> tuple[list[Peer], dict[str, Any]]:
    pythons = {"daft": args.daft_python, "ray_http": args.ray_python, "ray_sglang": args.ray_python}
    names = args.peers or (ENGINE_PEERS if args.parts == ["engines"] else HTTP_PEERS)
    asked = [Peer(name, pythons.get(name) or sys.executable, cpus) for name in names]
    versions = {peer.name: peer.versions() for peer in asked}
    for name, found in versions.items():
        if isinstance(found, str):
            print(f"absent: {name}: {found}", file=sys.stderr)
    return [peer for peer in asked if not isinstance(versions[peer.name], str)], versions


def _part(bench: Bench, part: str, args: Any) -> dict[str, Any]:
    if part == "poison":
        return poison(bench, args.poison_rows)
    if part == "kill":
        return kill(bench, args.kill_rows)
    if part == "engines":
        return engines(bench, args.engine_rows, args.model, args.repeats)
    if part == "unbounded":
        return unbounded(bench, args.unbounded_rows)
    sizes = sorted(args.rows)
    slow = {rows: [] if rows == sizes[0] else args.slow for rows in sizes}
    return {str(rows): speed(bench, rows, args.repeats, slow[rows]) for rows in sizes}


def _options() -> Any:
    options = common.parser(__doc__)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:4]))
    options.add_argument("--peers", nargs="+", choices=ENGINE_PEERS, help="the http peers")
    options.add_argument("--daft-python", help="interpreter that has Daft (this one)")
    options.add_argument("--ray-python", help="interpreter that has Ray Data LLM (this one)")
    options.add_argument("--rows", nargs="+", type=int, default=[4000, 20_000], help="rows of the tables")
    options.add_argument(
        "--slow",
        nargs="*",
        choices=HTTP_PEERS,
        default=["asyncio_openai", "daft"],
        help="peers that run on the smallest table only",
    )
    options.add_argument("--unbounded-rows", nargs="*", type=int, default=[1000, 2000])
    options.add_argument("--poison-rows", type=int, default=100)
    options.add_argument("--kill-rows", type=int, default=2000)
    options.add_argument("--engine-rows", type=int, default=200)
    options.add_argument("--file-rows", type=int, default=500, help="rows of an input file")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--limit", type=float, default=180.0, help="seconds of one run at most")
    options.add_argument("--port", type=int, default=31_000)
    options.add_argument("--latency-ms", type=float, default=10.0)
    options.add_argument("--model", type=Path, help="a model for --parts engines")
    options.add_argument("--name", default="batch_peers", help="name of the JSON")
    args = options.parse_args()
    if "engines" in args.parts and args.model is None:
        options.error("--parts engines needs --model")
    return args


def main() -> int:
    """Runs the parts, prints and writes the result; 1 if a peer is absent."""
    args = _options()
    cores = sorted(os.sched_getaffinity(0))
    clients = set(cores[1:]) or None
    os.sched_setaffinity(0, cores[:1])
    peers, versions = _peers(args, clients)
    setting = {
        "cores": len(cores), "latency_ms": args.latency_ms, "concurrency": peer_clients.CONCURRENCY,
        "absent": {name: why for name, why in versions.items() if isinstance(why, str)},
        "peers": {name: found for name, found in versions.items() if not isinstance(found, str)},
    }  # fmt: skip
    url = f"http://127.0.0.1:{args.port}"
    command = [sys.executable, str(Path(peer_server.__file__)), "--port", str(args.port)]
    server = subprocess.Popen([*command, "--latency-ms", str(args.latency_ms)])
    try:
        _wait(url + "/stats", 20.0)
        with tempfile.TemporaryDirectory() as folder:
            work = peer_clients.Work(
                input=Path(folder), output=Path(folder), url=url, model=peer_server.MODEL,
                concurrency=peer_clients.CONCURRENCY, max_tokens=16, state=None, tolerant=False,
                file_rows=args.file_rows,
            )  # fmt: skip
            bench = Bench(Path(folder), url, peers, work, args.limit)
            for part in args.parts:
                _keep(args, part, _part(bench, part, args) | {"setting": setting})
    finally:
        server.terminate()
        server.wait(10)
    return 1 if setting["absent"] else 0


def _keep(args: Any, part: str, found: dict[str, Any]) -> None:
    """Writes a part beside those that are in the file already, each with the run that it is from."""
    path = args.out / f"{args.name}.json"
    others = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    others[part] = {"run": common.header(args.commit), **found}
    common.write(args.name, {"parts": others}, args.out, args.commit)


if __name__ == "__main__":
    sys.exit(main())
