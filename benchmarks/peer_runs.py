"""Runs the clients of `batch_peers.py` as processes of their own: time, memory of all processes, and the output."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peer_clients
import peer_server
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
SAMPLE_SECONDS = 0.2


@dataclass
class Tree:
    """All processes that descend from one, also those whose parent has ended since.

    Memory is PSS: a page that several processes share counts once among them.
    """

    root: psutil.Process
    seen: dict[tuple[int, float], psutil.Process] = field(default_factory=dict)
    cpu: dict[tuple[int, float], float] = field(default_factory=dict)
    peak: float = 0.0
    peak_processes: int = 0

    def sample(self) -> None:
        """Looks at every process once."""
        self._add(self.root)
        for known in list(self.seen.values()):
            try:
                for child in known.children():
                    self._add(child)
            except psutil.Error:
                continue
        total, count = 0, 0
        for key, process in self.seen.items():
            try:
                total += process.memory_full_info().pss
                times = process.cpu_times()
                self.cpu[key] = times.user + times.system
                count += 1
            except psutil.Error:
                continue
        if total > self.peak:
            self.peak, self.peak_processes = total, count

    def _add(self, process: psutil.Process) -> None:
        try:
            self.seen.setdefault((process.pid, process.create_time()), process)
        except psutil.Error:
            return

    def alive(self) -> list[psutil.Process]:
        """Those that still run."""
        return [p for p in self.seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        """Kills those that still run."""
        for process in self.alive():
            process.kill()


@dataclass(frozen=True)
class Peer:
    """A client and the interpreter that has its packages.

    Args:
        cpus: the cores that it may use, None for all.
    """

    name: str
    python: str
    cpus: set[int] | None = None

    def command(self, *arguments: str, bounded: bool = True) -> list[str]:
        """The command line; `bounded` sets what bounds the rows in flight."""
        wanted = peer_clients.ENVIRONMENT.get(self.name, {}) if bounded else {}
        variables = {"PYTHONPATH": str(HERE.parent), "DO_NOT_TRACK": "1", **wanted}
        pairs = [f"{key}={value}" for key, value in variables.items()]
        pinned = ["taskset", "-c", ",".join(map(str, sorted(self.cpus)))] if self.cpus else []
        script = str(HERE / "peer_clients.py")
        return ["env", *pairs, *pinned, self.python, script, self.name, *arguments]

    def versions(self) -> dict[str, str] | str:
        """The versions of its packages, or why it cannot run."""
        done = subprocess.run(self.command("--versions"), capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else last_line(done.stderr)

    def run(
        self,
        work: peer_clients.Work,
        log: Path,
        *,
        limit: float = 180.0,
        kill_when: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Runs one job.

        Args:
            log: where its output goes.
            limit: seconds after which it is killed.
            kill_when: asked all the time; the client gets SIGKILL when it says yes.

        Returns:
            exit code, seconds, the machine's load at its end, peak memory in MB with the number of processes then,
            CPU seconds, processes left over five seconds after its end, and the last line of its log.
        """
        fields = {
            key: str(value) if isinstance(value, Path) else value for key, value in asdict(work).items()
        }
        arguments = self.command("--work", json.dumps(fields), bounded=work.concurrency > 0)
        began = time.monotonic()
        how = "finished"
        with log.open("w") as output:
            child = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)
            tree = Tree(psutil.Process(child.pid))
            due = 0.0
            while child.poll() is None:
                now = time.monotonic()
                if now >= due:
                    tree.sample()
                    due = time.monotonic() + SAMPLE_SECONDS
                if now - began > limit or kill_when():
                    how = "over the limit" if now - began > limit else "killed"
                    child.send_signal(signal.SIGKILL)
                time.sleep(0.01)
        seconds = time.monotonic() - began
        patience = time.monotonic() + 5
        while tree.alive() and time.monotonic() < patience:
            time.sleep(0.1)
        left = [process.name() for process in tree.alive()]
        tree.end()
        return {
            "how": how, "exit_code": child.returncode, "seconds": round(seconds, 3), "load": psutil.getloadavg()[0],
            "peak_mb": round(tree.peak / 1e6, 1), "processes_at_peak": tree.peak_processes,
            "cpu_seconds": round(sum(tree.cpu.values()), 2), "left_over": left,
            "last_line": "" if child.returncode == 0 else last_line(log.read_text(errors="replace")),
        }  # fmt: skip


def last_line(text: str) -> str:
    """The last line that is not empty, at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def ask(url: str, path: str, *, post: bool = False) -> dict[str, Any]:
    """Asks the stub server."""
    request = urllib.request.Request(url + path, method="POST" if post else "GET")
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def write_table(folder: Path, rows: int, file_rows: int, poison: dict[int, str | None] | None = None) -> None:
    """`id` and `body`: row 17 says `row 17: word ...`, some 200 characters; `poison` has other bodies by row."""
    folder.mkdir(parents=True)
    for start in range(0, rows, file_rows):
        ids = list(range(start, min(rows, start + file_rows)))
        bodies = [(poison or {}).get(row, f"row {row}: " + "word " * 40) for row in ids]
        table = pa.table({"id": pa.array(ids, pa.int64()), "body": pa.array(bodies, pa.string())})
        pq.write_table(table, folder / f"in-{start:07d}.parquet")


def look(folder: Path, rows: int, poison: int | None = None) -> dict[str, Any]:
    """What an output folder holds, as a reader of its Parquet files finds it.

    Returns:
        rows, lost (of the input), twice, right (the server's own answer), unreadable files; and the poison row.
    """
    found: list[dict[str, Any]] = []
    unreadable = 0
    for path in sorted(folder.rglob("*.parquet")) if folder.exists() else []:
        if path.name.startswith((".", "_")):
            continue
        try:
            found += pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError):
            unreadable += 1
    ids = [row["id"] for row in found]
    right = sum(row["response"] == peer_server.answer_of(row["id"]) for row in found)
    seen: dict[str, Any] = {
        "rows": len(ids), "lost": rows - len(set(ids)), "twice": len(ids) - len(set(ids)),
        "right": right, "unreadable_files": unreadable,
    }  # fmt: skip
    if poison is not None:
        bad = [row for row in found if row["id"] == poison]
        seen["poison_row"] = (
            {name: bad[0].get(name) for name in ("response", "error") if name in bad[0]} if bad else None
        )
    return seen
