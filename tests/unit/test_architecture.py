"""The house rules, read from the syntax trees: who may import what, and how large things may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("arctic_sglang", "batch_sdk", "speculative", "swiftkv")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# The layer of a module is that of its longest prefix here; what is not listed is L0: no SGLang at all.
LAYERS = {
    "arctic_sglang.plugin": 3,
    "arctic_sglang.doctor": 3,
    "batch_sdk.cli": 3,
    "arctic_sglang.docs": 3,
    "arctic_sglang.shift": 2,
    "arctic_sglang.shift.topology": 0,
    "arctic_sglang.shift.policy": 0,
    "arctic_sglang.shift.weights": 0,
    "arctic_sglang.shift.layout": 0,
    "arctic_sglang.shift.formats": 0,
    "arctic_sglang.shift.exchange": 0,
    "arctic_sglang.shift.push": 0,
    "arctic_sglang.shift.symmetric": 0,
    "arctic_sglang.shift.measured": 0,
    "arctic_sglang.shift.layers": 0,
    "arctic_sglang.shift.modules": 0,
    "arctic_sglang.shift.limits": 0,
    "arctic_sglang.shift.figures": 0,
    "arctic_sglang.shift.metrics": 0,
    "arctic_sglang.shift.ending": 0,
    "arctic_sglang.embedding": 2,
    "arctic_sglang.embedding.checkpoint": 0,
    "arctic_sglang.embedding.endpoint": 0,
    "arctic_sglang.embedding.front": 0,
    "arctic_sglang.embedding.metrics": 0,
    "arctic_sglang.embedding.openai_api": 0,
    "arctic_sglang.embedding.placement": 0,
    "arctic_sglang.embedding.replicas": 0,
    "arctic_sglang.embedding.graphs": 0,
    "arctic_sglang.embedding.kernels": 0,
    "arctic_sglang.embedding.lane": 0,
    "arctic_sglang.embedding.head": 0,
    "arctic_sglang.embedding.in_work": 0,
    "arctic_sglang.embedding.model_config": 0,
    "arctic_sglang.embedding.pool": 0,
    "arctic_sglang.embedding.road": 0,
    "arctic_sglang.embedding.step": 0,
    "arctic_sglang.embedding.rows": 0,
    "arctic_sglang.embedding.service": 0,
    "arctic_sglang.embedding.tokens": 0,
    "arctic_sglang.embedding.wire": 0,
    "arctic_sglang.cpu": 2,
    "arctic_sglang.cpu.defaults": 0,
    "swiftkv.models": 2,
    "speculative.sglang_worker": 2,
    "batch_sdk.engines.sglang": 2,
    "batch_sdk.engines.sglang_embedding": 2,
    "arctic_sglang.compat": 1,
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        found = LAYERS.get(".".join(parts[:end]))
        if found is not None:
            return found
    return 0


def imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def package_door(module: str) -> bool:
    return (ROOT.joinpath(*module.split(".")) / "__init__.py").is_file()


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


@pytest.mark.parametrize("module", TREES)
def test_imports_point_downward(module):
    for name in imports(TREES[module]):
        if name.split(".")[0] in PACKAGES:
            assert layer(name) <= layer(module), (
                f"{module} (L{layer(module)}) imports {name} (L{layer(name)})"
            )


@pytest.mark.parametrize("module", TREES)
def test_only_compat_knows_sglangs_inside(module):
    if module.startswith("arctic_sglang.compat"):
        return
    inside = [name for name in imports(TREES[module]) if name.startswith("sglang.")]
    assert inside == []
    if layer(module) == 0:
        assert "sglang" not in [name.split(".")[0] for name in imports(TREES[module])]


@pytest.mark.parametrize("module", TREES)
def test_only_env_reads_the_environment(module):
    if module == "arctic_sglang.env":
        return
    found = [
        node.lineno
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv")
    ]
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_sizes(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_FILE_LINES
    for node in ast.walk(TREES[module_name(path)]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1:2] or node.body if ast.get_docstring(node) else node.body
            assert node.end_lineno - first[0].lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("module", TREES)
def test_functions_are_typed(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spec = node.args
            named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
            bare = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{node.name}: {bare}"
            assert node.returns is not None, f"{node.name} has no return annotation"


def test_layers_name_what_exists_or_is_planned():
    planned = ("arctic_sglang.shift", "swiftkv.models", "speculative.sglang_worker")
    for name in LAYERS:
        known = any(module == name or module.startswith(f"{name}.") for module in TREES)
        assert known or name.startswith(planned), f"{name} is in LAYERS and nowhere else"
