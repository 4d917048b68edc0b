"""Finds names in SGLang's source files without importing them.

Importing SGLang takes seconds, needs torch, and fails outright where something is broken, which is just
when one wants to know what. Reading its syntax trees works on any SGLang, installed or unpacked.
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class NotFoundError(LookupError):
    """A dotted path does not exist in the source tree; the message says which part."""


@dataclass(frozen=True, slots=True)
class Found:
    """A definition and the file it stands in."""

    node: Definition
    path: Path

    @property
    def parameters(self) -> tuple[str, ...]:
        """Parameter names of a function, or of a class's `__init__`, in order; `*a` and `**k` starred."""
        node = self.node
        if isinstance(node, ast.ClassDef):
            init = _member(node, "__init__")
            if init is None:
                return ()
            node = init
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return ()
        spec = node.args
        names = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        names += [f"*{spec.vararg.arg}"] if spec.vararg else []
        names += [a.arg for a in spec.kwonlyargs]
        names += [f"**{spec.kwarg.arg}"] if spec.kwarg else []
        return tuple(names)

    @property
    def is_async(self) -> bool:
        """Whether calling it gives a coroutine, which BEFORE and AFTER hooks cannot see into."""
        return isinstance(self.node, ast.AsyncFunctionDef)

    @property
    def is_class(self) -> bool:
        """Whether it is a class."""
        return isinstance(self.node, ast.ClassDef)


def installed_root() -> Path | None:
    """Folder of the `sglang` package that `import sglang` would find, or None. Imports nothing."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def find(root: Path, dotted: str) -> Found:
    """Finds `sglang.a.b.Class.method` under the package folder `root`.

    Names that a module imports from another module of SGLang are followed, as are members that a class
    inherits from a base in SGLang.

    Raises:
        NotFoundError: with the first part of the path that is missing.
    """
    module, names = _split_module(root, dotted)
    if not names:
        msg = f"{dotted} is a module, not a name in one"
        raise NotFoundError(msg)
    found = _find_in_module(root, module, names[0])
    for index, name in enumerate(names[1:], start=1):
        holder = ".".join([module, *names[:index]])
        if not isinstance(found.node, ast.ClassDef):
            msg = f"{holder} is not a class, so it has no {name}"
            raise NotFoundError(msg)
        found = find_member(root, found, name, holder)
    return found


def find_member(root: Path, holder: Found, name: str, label: str) -> Found:
    """A method or attribute of a class, or of one of its bases. `label` names the class in errors."""
    assert isinstance(holder.node, ast.ClassDef)
    node = _member(holder.node, name)
    if node is not None:
        return Found(node, holder.path)
    for base in holder.node.bases:
        if isinstance(base, ast.Name):
            try:
                parent = _find_in_module(root, _module_of(root, holder.path), base.id)
                if isinstance(parent.node, ast.ClassDef):
                    return find_member(root, parent, name, label)
            except NotFoundError:
                continue  # a base outside SGLang, such as nn.Module: nothing of ours hangs on it
    msg = f"{label} has no {name}"
    raise NotFoundError(msg)


def _split_module(root: Path, dotted: str) -> tuple[str, list[str]]:
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if _module_file(root, ".".join(parts[:end])) is not None:
            return ".".join(parts[:end]), parts[end:]
        # a folder without __init__ is a package too, as `sglang.srt` is
        if end < len(parts) and root.joinpath(*parts[1:end]).is_dir():
            msg = f"{'.'.join(parts[:end])} has no module {parts[end]}"
            raise NotFoundError(msg)
    msg = f"no module of {dotted} exists"
    raise NotFoundError(msg)


def _module_file(root: Path, module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != "sglang":
        return None
    base = root.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _module_of(root: Path, path: Path) -> str:
    parts = ["sglang", *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=256)
def _parse(path: Path, _mtime_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _find_in_module(root: Path, module: str, name: str, depth: int = 0) -> Found:
    path = _module_file(root, module)
    if path is None or depth > 8:
        msg = f"{module} does not exist, so it has no {name}"
        raise NotFoundError(msg)
    tree = _parse(path, path.stat().st_mtime_ns)
    for node in _toplevel(tree.body):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find_in_module(root, node.module, alias.name, depth + 1)
        elif name in _names_defined(node):
            return Found(node, path)
    msg = f"{module} has no {name}"
    raise NotFoundError(msg)


def _toplevel(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements of a module or class, those inside `if` and `try` included."""
    statements: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If):
            statements += _toplevel(node.body) + _toplevel(node.orelse)
        elif isinstance(node, ast.Try):
            statements += _toplevel(node.body) + _toplevel(node.orelse)
        else:
            statements.append(node)
    return statements


def _names_defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.Assign):
        return {t.id for t in node.targets if isinstance(t, ast.Name)}
    return set()


def _member(node: ast.ClassDef, name: str) -> Definition | None:
    for statement in _toplevel(node.body):
        if name in _names_defined(statement):
            return statement  # type: ignore[return-value]  # _names_defined is empty for any other kind
    return _instance_attribute(node, name)


def _instance_attribute(node: ast.ClassDef, name: str) -> ast.Assign | ast.AnnAssign | None:
    """`self.name = ...` in any method of the class."""
    for inner in ast.walk(node):
        targets = inner.targets if isinstance(inner, ast.Assign) else []
        targets = [inner.target] if isinstance(inner, ast.AnnAssign) else targets
        flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
        for target in flat:
            owner = target.value if isinstance(target, ast.Attribute) and target.attr == name else None
            if isinstance(owner, ast.Name) and owner.id == "self":
                return inner  # type: ignore[return-value]  # only assignments have targets
    return None
