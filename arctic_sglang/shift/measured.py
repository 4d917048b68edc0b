"""What was measured to choose the threshold, kept from one start to the next. Pure but for one file.

The choice depends on the model's sizes, the ranks, the GPUs and the versions of what computes; all of that is the key
(`Situation`). A file that cannot be read is no error: it is measured again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arctic_sglang.shift.policy import Timing

_LEAST, _MOST = 64, 8192


@dataclass(frozen=True, slots=True)
class Situation:
    """What the times depend on.

    Attributes:
        model: sizes from the model's config, by name.
        dtype: of its weights, with its quantisation.
        device: the GPUs' name.
        tp: ranks of the base tensor parallelism.
        sp: ranks of a sequence group.
        versions: of the packages that compute.
    """

    model: dict[str, int]
    dtype: str
    device: str
    tp: int
    sp: int
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """A name that no other situation has."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def sizes(most: int) -> list[int]:
    """The numbers of tokens that are measured: powers of two up to the largest step that is of interest.

    Args:
        most: tokens of the largest step there is.
    """
    found, size = [], _LEAST
    while size <= min(most, _MOST):
        found.append(size)
        size *= 2
    return found or [max(1, most)]


def load(folder: Path, situation: Situation) -> list[Timing] | None:
    """What was measured before in this situation, or None."""
    try:
        content = json.loads((folder / f"{situation.key}.json").read_text(encoding="utf-8"))
        if content["situation"] != asdict(situation):
            return None
        return [
            Timing(int(t["tokens"]), float(t["tensor"]), float(t["sequence"])) for t in content["timings"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(folder: Path, situation: Situation, timings: Sequence[Timing]) -> None:
    """Keeps it; where the folder cannot be written to, nothing is kept."""
    content = {"situation": asdict(situation), "timings": [asdict(timing) for timing in timings]}
    path = folder / f"{situation.key}.json"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")  # another server may write at the same time
        whole.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        whole.replace(path)
