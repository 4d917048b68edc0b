"""A JSON of figures that grows figure by figure and run by run, so that an end from outside takes nothing with it."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import common


class Record:
    """The JSON: what was measured, the runs that did it, and arms, each with its cases by name.

    Args:
        args: of the command line: `out`, `name`, `fresh` and `commit`.
        about: what is measured; a file of something else is not added to.
        compare: makes the table of all arms.

    Raises:
        ValueError: the file that is there is of something else.
    """

    def __init__(
        self, args: argparse.Namespace, about: dict[str, Any], compare: Callable[[dict[str, Any]], Any]
    ) -> None:
        self._path, self._compare = args.out / f"{args.name}.json", compare
        self.content: dict[str, Any] = {**about, "runs": [], "arms": {}}
        if self._path.exists() and not args.fresh:
            self.content = json.loads(self._path.read_text(encoding="utf-8"))
            there = {key: self.content.get(key) for key in about}
            if there != about:
                message = f"{self._path} is of {there}, not {about}; give --fresh to replace it, or --name"
                raise ValueError(message)
        self.content["runs"].append(common.header(args.commit))
        self.ended: set[str] = set()  # arms of this run

    def arm(self, name: str, about: dict[str, Any]) -> None:
        """Begins an arm; what it measured in an earlier run stays until it is measured again."""
        before = self.content["arms"].get(name, {})
        kept = {"cases": before.get("cases", {})}
        self.content["arms"][name] = {"run": self._run, **about, **kept}
        self.write()

    def add(self, arm: str, case: str, figure: dict[str, Any]) -> None:
        """Adds a figure and writes the file."""
        self.content["arms"][arm]["cases"][case] = {"run": self._run, **figure}
        self.write()
        shown = figure.get("error") or figure.get("beside_ms") or f"{figure['median']:,.2f} {figure['unit']}"
        print(f"  {arm}: {case}: {shown}", flush=True)

    def failed(self, arm: str, error: BaseException) -> None:
        """Notes why an arm has no more figures."""
        print(f"{arm} failed: {error}", file=sys.stderr, flush=True)
        self.ended.add(arm)
        self.content["arms"].setdefault(arm, {"run": self._run, "cases": {}})
        self.content["arms"][arm]["error"] = str(error).splitlines()[-1]
        self.write()

    def write(self) -> None:
        """Writes the file with the comparison of all arms."""
        self.content["table"] = self._compare(self.content["arms"])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")

    @property
    def _run(self) -> int:
        return len(self.content["runs"]) - 1


class Records:
    """Several files of the same arms: what is said of an arm goes into all of them.

    Args:
        records: by what each is of.
    """

    def __init__(self, records: dict[str, Record]) -> None:
        self._records = records

    def arm(self, name: str, about: dict[str, Any]) -> None:
        """Begins an arm in each."""
        for record in self._records.values():
            record.arm(name, about)

    @property
    def ended(self) -> set[str]:
        """Arms that failed in this run, in whichever file."""
        return set().union(*(record.ended for record in self._records.values()))

    def failed(self, arm: str, error: BaseException) -> None:
        """Notes in each why an arm has no more figures."""
        for record in self._records.values():
            record.failed(arm, error)
