"""Environments that hold what a wheel asks for and nothing else."""

import importlib.metadata
import os
import sys
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(wheel: Path) -> list[Distribution]:
    """The distributions of this environment to which the wheel's requirements lead, without its extras.

    Raises:
        AssertionError: one is not of the version that is asked for.
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    (metadata,) = [path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info")]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting: list[tuple[Distribution, str]] = [(PathDistribution(metadata), "")]
    while waiting:
        asking, extra = waiting.pop()
        for requirement in map(Requirement, asking.requires or ()):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            there = found.setdefault(name, importlib.metadata.distribution(name))
            assert requirement.specifier.contains(there.version, prereleases=True), (
                f"{requirement}: {there.version}"
            )
            new = {(name, one) for one in ("", *requirement.extras)} - seen
            seen |= new
            waiting += [(there, one) for _, one in new]
    return list(found.values())


def link(distributions: list[Distribution], environment: Path) -> None:
    """Puts them into a virtual environment as symbolic links; their scripts run that environment's Python.

    A folder is linked as a whole unless a distribution that is not among them has files in it too.
    """
    names = {canonicalize_name(one.name) for one in distributions}
    others = (one for one in importlib.metadata.distributions() if canonicalize_name(one.name) not in names)
    shared = {"..", *(file.partition("/")[0] for other in others for file in _files(other))}
    old, new = (b"#!" + bytes(prefix / "bin") + b"/" for prefix in (Path(sys.prefix), environment))
    for distribution in distributions:
        folder = distribution.locate_file("")
        tops = {file.partition("/")[0] for file in _files(distribution)}
        for file in [
            *(tops - shared),
            *(file for file in _files(distribution) if file.partition("/")[0] in shared),
        ]:
            source = Path(os.path.normpath(folder / file))
            target = environment / source.relative_to(sys.prefix)
            # Compiled files may be gone, or be listed twice.
            if not source.exists() or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent == environment / "bin" and source.read_bytes().startswith(old):
                target.write_bytes(source.read_bytes().replace(old, new, 1))
                target.chmod(0o755)
            else:
                target.symlink_to(source)


def _files(distribution: Distribution) -> list[str]:
    """Its files as RECORD has them: relative to the folder of packages, with slashes."""
    return [
        line.rsplit(",", 2)[0].strip('"') for line in (distribution.read_text("RECORD") or "").splitlines()
    ]
