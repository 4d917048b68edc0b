"""The file that keeps responses over a restart: tokens by page, and which page follows which. Pure: numpy only.

What is looked up is built anew when it is read (a fraction of a second for a million tokens): `levels` and the capacity
may differ from those it was written with.
"""

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from speculative.suffix.arrays import LIES, PAGES, Index, Int32
from speculative.suffix.settings import PAGE

VERSION = 1
ARRAYS = ("version", "page", "model", "tokens", "before")


def write(path: Path, kept: Index, model: str) -> None:
    """Writes the pages of a ring, oldest first; the file appears whole or not at all.

    Args:
        path: of the file; its folder exists.
        kept: the ring.
        model: whose token ids these are.
    """
    path = Path(path)
    pages = int(kept.ring[PAGES])
    order = (np.arange(pages) + kept.ring[LIES]) % pages + 1 if pages else np.zeros(0, np.int64)
    order = order[kept.owner[order] > 0]
    row_of = np.full(pages + 1, -1, np.int32)
    row_of[order] = np.arange(len(order), dtype=np.int32)
    before = kept.before[order]
    told = {
        "version": np.array(VERSION),
        "page": np.array(PAGE),
        "model": np.array(model),
        "tokens": kept.tokens.reshape(-1, PAGE)[order],
        "before": np.where(before > 0, row_of[before], -1).astype(np.int32),
    }
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **told)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:  # an interrupt too: half a file must not stay behind
        Path(name).unlink()
        raise


def read(path: Path, model: str, pages: int) -> tuple[Int32, Int32]:
    """The newest `pages` pages of a file, oldest first: int32 [pages, 8] tokens, int32 [pages] row of the page before.

    Raises:
        ValueError: not such a file, damaged, of another version or model.
        FileNotFoundError: there is none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            told = {name: file[name] for name in ARRAYS}
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no suffix index ({error}); give a file that save wrote") from error
    if (int(told["version"]), int(told["page"])) != (VERSION, PAGE):
        raise ValueError(
            f"{path} is of version {told['version']} with pages of {told['page']}; this release reads "
            f"version {VERSION} with pages of {PAGE}: delete it, the index fills again"
        )
    if str(told["model"]) != model:
        raise ValueError(
            f"{path} holds tokens of model {str(told['model'])!r}, not of {model!r}; give its own file"
        )
    tokens, before = told["tokens"], told["before"]
    if tokens.dtype != np.int32 or tokens.shape != (len(before), PAGE) or not _ordered(before):
        raise ValueError(
            f"{path} is damaged: its pages do not follow each other; delete it, the index fills again"
        )
    skipped = max(0, len(tokens) - pages)
    return tokens[skipped:], np.where(before >= skipped, before - skipped, -1)[skipped:].astype(np.int32)


def _ordered(before: Int32) -> bool:
    rows = np.arange(len(before))
    return bool(before.dtype == np.int32 and ((before >= -1) & (before < rows)).all())
