"""The examples of docs/batch-tables.md run, and its lists are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec

from batch_sdk import kinds
from batch_sdk.openai_batch import requests

PAGE = (Path(__file__).parents[3] / "docs" / "batch-tables.md").read_text(encoding="utf-8")


def test_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").store.clear()
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    names: dict = {}
    for block in blocks:
        exec(compile(block, "batch-tables.md", "exec"), names)


def test_endings_and_fields_are_all_named():
    for ending in (*kinds._KINDS, *kinds._CODECS):
        assert f"`{ending}`" in PAGE
    fields = {*requests._SAMPLING, *requests._IDLE, *requests._LENGTHS[requests.CHAT]} - {"model"}
    for field in fields:
        assert f"`{field}`" in PAGE, field
