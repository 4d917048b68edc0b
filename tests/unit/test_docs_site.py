"""The documentation site: it builds without a warning, a browser shows it, and what pages quote is in the code."""

import argparse
import ast
import functools
import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from arctic_sglang.compat import source
from arctic_sglang.config import ArcticConfig, flag_name
from batch_sdk import cli
from batch_sdk.errors import RowErrorKind
from tests.unit.batch_sdk import browser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("arctic_sglang", "batch_sdk", "speculative", "swiftkv")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def build(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(to),
    ]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_page_is_built(site):
    for path in DOCS.glob("*.md"):
        built = site / ("index.html" if path.stem == "index" else f"{path.stem}/index.html")
        assert built.is_file(), path.name


def test_broken_links_and_forgotten_pages_end_the_build(tmp_path):
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as file:
        file.write("\n[a](nothing.md) [b](shift.md#nothing) ![c](nothing.svg) [d](/shift/)\n")
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    for said in ("'nothing.md'", "an anchor '#nothing'", "'nothing.svg'", "'/shift/'", "forgotten.md"):
        assert said in done.stderr


# Of the page's own part: the search field beside it moves with a change of the width, and takes its time.
SEEN = """[innerWidth, document.querySelector(".md-main").scrollWidth,
  [...document.images].every(image => image.naturalWidth)]"""


@pytest.mark.parametrize("name", ["", "shift/"])
def test_a_browser_shows_it_and_asks_nobody_else(address, name):
    seen = browser.look(address + name, SEEN, (1300, "light"), (400, "dark"))
    for view in seen.views:
        inner, wide, images = view.value
        assert wide <= inner
        assert images
    assert seen.complaints == []
    assert [url for url in seen.urls if not url.startswith((address, "data:", "blob:"))] == []


def test_lists_and_tables_are_the_same_for_both_readers():
    """CommonMark takes two spaces for what belongs to an item of a list, the site's Markdown four."""
    for path in DOCS.glob("*.md"):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"\n\n {1,3}[^ \n].*", text) == [], path.name
        assert re.findall(r"^(?![-|#>\s]|\d+\.).+\n(?:- |\|).*", text, re.MULTILINE) == [], path.name


@functools.cache
def messages() -> list[str]:
    """Every string of the packages but docstrings, with a NUL for each value that is filled in."""
    found = []
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                found.append(node.value)
    return found


def quoted() -> list[str]:
    heads = re.findall(r"^#### .*$", page("troubleshooting.md"), re.MULTILINE)
    return re.findall(r"`(.+?)`", "\n".join(heads))


def test_messages_of_troubleshooting_are_those_of_the_code():
    assert len(quoted()) > 50
    assert len(set(quoted())) == len(quoted())
    for text in quoted():
        pieces = [re.escape(piece.strip()) for piece in text.split("…")]
        pattern = re.compile(".*".join(pieces), re.DOTALL)
        assert any(pattern.search(message) for message in messages()), text


def test_kinds_of_error_rows_are_those_of_the_code():
    rows = page("troubleshooting.md").split("### Rows that have an error")[1]
    assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == [kind.value for kind in RowErrorKind]


def test_the_quickstarts_batch_jobs_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    shell = "".join(re.findall(r"```sh\n(.*?)```", page("quickstart.md"), re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in shell.splitlines() if line.startswith("arctic-batch ")]
    assert [command[1] for command in commands] == ["generate", "generate", "embed"]
    for _, *args in commands:
        assert cli.main([*args, "--engine", "dummy"]) == 0, capsys.readouterr().err


def batch_flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from batch_flags(command)


@functools.cache
def known_flags() -> set[str]:
    """Ours, those of our programs, and those that SGLang's file of arguments has, by field or by name."""
    found = set(batch_flags(cli.build_parser()))
    files = [path for name in ("swiftkv", "speculative") for path in (ROOT / name).rglob("*.py")]
    files += [ROOT / "arctic_sglang" / name for name in ("config.py", "doctor.py")]
    for path in (*files, source.installed_root() / "srt" / "server_args.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'"(--[a-z][\w-]+)"', text))
        found |= {flag_name(name) for name in re.findall(r"^    ([a-z]\w+): ", text, re.MULTILINE)}
    return found


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", text))


def of_vllm(text: str) -> set[str]:
    """The left columns of the tables about vLLM, which have its flags."""
    part = text.split("## From vLLM")[1].split("## From plain SGLang")[0]
    rows = [row.split(" | ")[0] for row in part.splitlines() if row.startswith("| ")]
    return {"--speculative-config"}.union(*map(flags_of, rows))


@pytest.mark.parametrize("name", ["index", "quickstart", "migration", "troubleshooting", "adding-a-model"])
def test_flags_are_those_of_the_code(name):
    text = page(f"{name}.md")
    others = of_vllm(text) if name == "migration" else set()
    assert flags_of(text) - others - known_flags() == set()


def test_migration_names_every_flag_of_ours():
    named = flags_of(page("migration.md"))
    missing = {flag_name(field.name) for field in fields(ArcticConfig)} - named
    assert missing == {"--embedding-step-tokens", "--cpu-threads-per-rank"}  # with nothing to migrate from


def test_adding_a_model_names_files_that_are_there():
    for path in re.findall(
        r"`((?:arctic_sglang|swiftkv|speculative|tests)/[\w/.-]+)`", page("adding-a-model.md")
    ):
        assert (ROOT / path).exists(), path
