"""Checks the table of seams against an SGLang, by reading its source.

The judgement is pure: an SGLang folder in, a list of problems out. Who is stopped by a problem, and who is
only warned, is decided by `judge`.
"""

import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet

from arctic_sglang.compat import source
from arctic_sglang.compat.seams import Kind, Seam, seams_of
from arctic_sglang.features import Feature

logger = logging.getLogger(__name__)


class SeamError(RuntimeError):
    """A requested feature cannot work with the installed SGLang. The server must not start."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one seam does not fit the installed SGLang."""

    seam: str
    feature: Feature
    text: str

    def __str__(self) -> str:
        return f"[{self.feature}] {self.seam}: {self.text}"


def sglang_version(root: Path) -> str:
    """Version of the SGLang in a folder, from its own file, else from the metadata beside it; "0" if neither says."""
    for name in ("_version.py", "version.py"):
        path = root / name
        if path.is_file():
            match = re.search(r"^__version__ = (?:version = )?['\"]([^'\"]+)['\"]", path.read_text(), re.M)
            if match:
                return match.group(1)
    # an editable install has its metadata elsewhere
    places = sys.path if root == source.installed_root() else [str(root.parent)]
    found = importlib.metadata.distributions(name="sglang", path=places)
    return next((one.version for one in found), "0")


def verify(seams: Iterable[Seam], root: Path | None) -> list[Problem]:
    """Problems of these seams with the SGLang in `root` (`site-packages/sglang`); empty if all fit."""
    seams = tuple(seams)
    if root is None:
        text = "SGLang is not installed; install sglang==0.5.17"
        return [Problem(seam.id, seam.feature, text) for seam in seams]
    version = sglang_version(root)
    problems = []
    for seam in seams:
        if not is_tested(seam, version):
            text = f"tested with SGLang {seam.versions}, and {version} is installed"
            problems.append(Problem(seam.id, seam.feature, text))
        problems += misfits([seam], root)
    return problems


def is_tested(seam: Seam, version: str) -> bool:
    """Whether this release of SGLang is one that the seam was tested with."""
    return SpecifierSet(seam.versions).contains(version, prereleases=True)


def misfits(seams: Iterable[Seam], root: Path) -> list[Problem]:
    """Where names, parameters and members of these seams differ from the SGLang in `root`, whatever its release."""
    return [Problem(seam.id, seam.feature, text) for seam in seams for text in _check(seam, root)]


def _check(seam: Seam, root: Path) -> list[str]:
    try:
        found = source.find(root, seam.target)
    except source.NotFoundError as error:
        return [f"{seam.target} is gone: {error}"]
    texts = _check_shape(seam, found)
    for member in seam.members if found.is_class else ():
        try:
            source.find_member(root, found, member, seam.target)
        except source.NotFoundError as error:
            texts.append(str(error))
    return texts


def _check_shape(seam: Seam, found: source.Found) -> list[str]:
    if seam.members and not found.is_class:
        return [f"{seam.target} is no longer a class"]
    texts = []
    if seam.kind in (Kind.BEFORE, Kind.AFTER) and found.is_async:
        texts.append(f"{seam.target} became async, which a {seam.kind} hook cannot wrap")
    names = found.parameters
    missing = [p for p in seam.params if p not in names]
    if missing:
        texts.append(
            f"{seam.target} has no parameter {', '.join(missing)} (it has {', '.join(names) or 'none'})"
        )
    elif [p for p in names if p in seam.params] != list(seam.params):
        texts.append(
            f"{seam.target} takes {', '.join(names)}; the order {', '.join(seam.params)} is relied on"
        )
    return texts


def require(feature: Feature) -> None:
    """Stops a caller in this process whose feature does not fit the installed SGLang.

    Raises:
        SeamError: with every problem of the feature's seams.
    """
    judge(verify(seams_of(frozenset({feature})), source.installed_root()), frozenset({feature}))


def judge(problems: Iterable[Problem], requested: frozenset[Feature]) -> None:
    """Stops the start for a requested feature, warns for any other.

    Raises:
        SeamError: some problem belongs to a feature in `requested`; its text lists them all.
    """
    problems = list(problems)
    fatal = [p for p in problems if p.feature in requested]
    for problem in problems:
        if problem.feature not in requested:
            logger.warning("arctic-sglang: %s is not available: %s", problem.feature, problem)
    if fatal:
        listed = "\n".join(f"  - {p}" for p in fatal)
        names = ", ".join(sorted({p.feature for p in fatal}))
        msg = (
            f"arctic-sglang cannot provide what was asked for ({names}) with the installed SGLang:\n{listed}\n"
            "Install the tested version (pip install sglang==0.5.17), or start without the feature; "
            "arctic-doctor shows every seam."
        )
        raise SeamError(msg)
