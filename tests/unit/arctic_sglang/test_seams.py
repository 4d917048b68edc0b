"""The table of seams against the installed SGLang, and against the hooks that stand behind it."""

import inspect
from pathlib import Path

import pytest

from arctic_sglang.compat import source, vendor
from arctic_sglang.compat.apply import load_hook
from arctic_sglang.compat.seams import HOOKED, SEAMS, Kind
from arctic_sglang.compat.verify import SeamError, require, verify
from arctic_sglang.docs import seams_page
from arctic_sglang.features import Feature

ROOT = Path(__file__).parents[3]


def test_every_seam_fits_the_installed_sglang():
    assert [str(p) for p in verify(SEAMS, source.installed_root())] == []


def test_ids_and_targets_are_unique():
    assert len({s.id for s in SEAMS}) == len(SEAMS)
    hooked = [s.target for s in SEAMS if s.kind in HOOKED]
    assert len(set(hooked)) == len(hooked), "SGLang silently drops a second hook on one target"


def test_the_table_has_every_import_of_sglangs_inside():
    """`vendor` is the only door (test_architecture), so what it names and the table lacks is unlisted."""
    listed = {s.target for s in SEAMS}
    assert {f"{module}.{name}" for name, module in vendor._NAMES.items()} <= listed


def test_the_batch_engine_refuses_an_sglang_that_it_does_not_fit(monkeypatch, write_tree):
    root = write_tree({"_version.py": "__version__ = version = '0.5.17'\n"}, name="sglang")
    monkeypatch.setattr(source, "installed_root", lambda: root)
    with pytest.raises(SeamError, match=r"(?s)\(batch\).*batch.tokenizer"):
        require(Feature.BATCH)


def test_every_feature_has_its_seams():
    assert {s.feature for s in SEAMS} == set(Feature)
    assert all(s.id.startswith(f"{s.feature}.") and s.why and s.exit for s in SEAMS)


def test_replace_is_for_server_args_alone():
    assert [s.target for s in SEAMS if s.kind is Kind.REPLACE] == ["sglang.srt.server_args.ServerArgs"]


@pytest.mark.parametrize("seam", [s for s in SEAMS if s.kind in HOOKED], ids=lambda s: s.id)
def test_hook_accepts_what_its_kind_passes(seam):
    hook = load_hook(seam)
    if isinstance(hook, type):
        return
    target = source.find(source.installed_root(), seam.target)
    given = [p for p in target.parameters if not p.startswith("*")]
    extra = {Kind.BEFORE: 0, Kind.AFTER: 1, Kind.AROUND: 1}[seam.kind]
    inspect.signature(hook).bind(*[None] * extra, **dict.fromkeys(given)) if seam.kind is Kind.BEFORE else (
        inspect.signature(hook).bind(*[None] * (extra + len(given)))
    )


def test_page_is_generated_from_the_table():
    page = ROOT / "docs" / "seams.md"
    assert page.read_text(encoding="utf-8") == seams_page(), "run `make docs`"
