"""Fixtures for every layer of the tests."""

import textwrap
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=6, help="how often test_kills.py kills a batch job (6)")


@pytest.fixture
def write_tree(tmp_path):
    """Writes files under a fresh folder: `write_tree({"a/b.py": "text"})` -> the folder."""

    def write(files: dict[str, str], name: str = "tree") -> Path:
        root = tmp_path / name
        for path, text in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text), encoding="utf-8")
        return root

    return write
