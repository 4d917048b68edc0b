"""Puts seams into this process, and proves that they are there.

SGLang logs and swallows what goes wrong while it applies hooks, so nothing here trusts it: after every
application the target itself is looked at.
"""

import importlib
import logging
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from arctic_sglang.compat import vendor
from arctic_sglang.compat.seams import HOOKED, Kind, Role, Seam
from arctic_sglang.compat.verify import SeamError

logger = logging.getLogger(__name__)

_applied: dict[str, Seam] = {}  # of this process


def applied() -> tuple[str, ...]:
    """Ids of the seams applied in this process, in order."""
    return tuple(_applied)


def apply(seams: Iterable[Seam], role: Role) -> None:
    """Applies those seams that belong to this process and are not applied yet.

    Raises:
        SeamError: one of them is not in place afterwards.
    """
    todo = [
        seam for seam in seams
        if seam.kind in HOOKED | {Kind.SET, Kind.REGISTER} and role in seam.roles and seam.id not in _applied
    ]  # fmt: skip
    for seam in todo:
        if seam.kind is Kind.SET:
            owner, name = _owner(seam.target)
            setattr(owner, name, load_hook(seam))
        elif seam.kind is Kind.REGISTER:
            load_hook(seam)()  # raises what goes wrong itself
        else:
            _register(seam)
    if any(seam.kind in HOOKED for seam in todo):
        vendor.HookRegistry.apply_hooks()
    assert_applied(todo)
    _applied.update((seam.id, seam) for seam in todo)


def assert_applied(seams: Iterable[Seam]) -> None:
    """Looks at the targets of these seams.

    Raises:
        SeamError: a target does not carry its hook; every such seam is listed.
    """
    missing = [seam for seam in seams if seam.kind in HOOKED | {Kind.SET} and not is_applied(seam)]
    if missing:
        listed = "\n".join(f"  - [{s.feature}] {s.id}: {s.kind} on {s.target}" for s in missing)
        msg = (
            f"arctic-sglang's hooks are not in place in this process:\n{listed}\n"
            "SGLang's log says above why it did not apply them; another plugin may hold the same target "
            "(SGLANG_PLUGINS=arctic loads this one alone)."
        )
        raise SeamError(msg)


def is_applied(seam: Seam) -> bool:
    """Whether the seam's target carries our hook now."""
    hook = load_hook(seam)
    try:
        owner, name = _owner(seam.target)
        current = getattr(owner, name)
    except (ImportError, AttributeError):
        return False
    if seam.kind is Kind.SET or isinstance(hook, type):
        return current is hook
    return hook in _chain(current)


def load_hook(seam: Seam) -> Any:
    """Our side of a seam."""
    module, _, name = seam.hook.partition(":")
    return getattr(importlib.import_module(module), name)


def _register(seam: Seam) -> None:
    vendor.HookRegistry.register(
        seam.target,
        load_hook(seam),
        vendor.HookType[seam.kind.name],
        source=_source(),
    )


@lru_cache(maxsize=1)
def _source() -> Any:
    return vendor.HookSource(plugin_name="arctic", dist_name="arctic-sglang")


def _owner(target: str) -> tuple[Any, str]:
    """The imported module or class that holds the target, and the target's name in it."""
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:end]).startswith(error.name):
                continue  # this part is a class, not a module
            raise
        for part in parts[end:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    msg = f"no module of {target} exists"
    raise ImportError(msg)


def _chain(function: Any) -> set[Callable[..., Any]]:
    """Everything that SGLang's wrappers around a function call, found through their closures."""
    found: set[Callable[..., Any]] = set()
    while function is not None:
        for cell in getattr(function, "__closure__", None) or ():
            if callable(cell.cell_contents):
                found.add(cell.cell_contents)
        function = getattr(function, "__wrapped__", None)
    return found
