"""Build the docstring corpus: `python examples/tiny_lm/corpus.py --out DIR`.

Installs the packages of `packages.txt` with pip (no dependencies, wheels only) into a scratch folder, refuses
those whose metadata names no permissive licence, extracts (function, summary) pairs, removes duplicates, and
writes `train.jsonl.gz`, `plain.jsonl.gz` (functions without a docstring), `heldout.jsonl` and `packages.json`.
The packages named in HELDOUT give the held-out file alone and never a training example.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from email.parser import Parser
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from extract import Pair, functions, imperative, is_source_path, pairs
from licences import licence_of

HELDOUT = frozenset(
    "humanize pydash mir-eval skorch papermill trimesh sqlparse esda python-utils tsfresh validators funcy".split()
)
HELDOUT_TOTAL = 240
HELDOUT_MAX_CODE = 1600
#: The same summary teaches little after a few functions; the same name and summary less still.
MAX_SAME_DOC = 8
MAX_SAME_NAME_DOC = 3
MAX_SAME_FIRST_WORDS = 400
MAX_PER_PACKAGE = 9000
MAX_FILE_BYTES = 400_000
VERB_COUNT = 40
_SPACE_OR_COMMENT = re.compile(r"#.*|\s+")


def install(name: str, scratch: Path) -> bool:
    """Install one pinned package into its own scratch folder, unless it is there; False if pip cannot."""
    folder = scratch / name.split("==")[0]
    if folder.is_dir():
        return True
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
    ]
    partial_folder = folder.with_suffix(".partial")
    done = subprocess.run([*pip, "--target", str(partial_folder), name], capture_output=True, check=False)
    if done.returncode == 0:
        partial_folder.rename(folder)
    return done.returncode == 0


def describe(folder: Path) -> dict[str, str] | None:
    """Return a package's name, version and licence, or None when the licence is not on the list."""
    found = sorted(folder.glob("*.dist-info/METADATA"))
    if not found:
        return None
    metadata = Parser().parsestr(found[0].read_text(encoding="utf-8", errors="replace"), headersonly=True)
    licence = licence_of(metadata)
    if licence is None:
        return None
    return {"name": folder.name, "version": str(metadata["Version"]), "licence": licence}


def sources(folder: Path) -> Iterator[str]:
    """Yield the text of a package's ordinary Python files, in a fixed order."""
    for path in sorted(folder.rglob("*.py")):
        if is_source_path(path.relative_to(folder).as_posix()) and path.stat().st_size <= MAX_FILE_BYTES:
            yield path.read_text(encoding="utf-8", errors="replace")


def first_words(folder: Path) -> Counter[str]:
    """Count the first words of a package's docstrings, lower case."""
    raws = (
        raw.split(maxsplit=1)[0] for text in sources(folder) for _, _, raw in functions(text) if raw.strip()
    )
    return Counter(word.lower() for word in raws if word.isalpha())


def package_pairs(folder: Path, verbs: frozenset[str]) -> list[Pair]:
    """Return all the pairs of one package."""
    return [pair for text in sources(folder) for pair in pairs(text, verbs)]


def verb_set(counts: Counter[str]) -> frozenset[str]:
    """Return the first words that occur both plainly and in the third person: the corpus's own verbs."""
    third = {imperative(word).lower() for word, n in counts.items() if n >= 3 and imperative(word) != word}
    return frozenset(word for word in third if counts[word] >= VERB_COUNT)


def normalised(code: str) -> str:
    """Return a digest of a function without its comments and white space."""
    return hashlib.sha1(_SPACE_OR_COMMENT.sub("", code).encode()).hexdigest()


class Deduplicator:
    """Keeps the first of each kind of example and refuses repeats."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.bodies: set[str] = set()
        self.docs: Counter[str] = Counter()
        self.name_docs: Counter[tuple[str, str]] = Counter()
        self.openings: Counter[str] = Counter()

    def admits(self, pair: Pair) -> bool:
        """Tell whether the pair is new enough, and remember it if so."""
        digest = normalised(pair.code.split("\n", 1)[-1]) + pair.name
        if digest in self.bodies:
            return False
        self.bodies.add(digest)
        if not pair.doc:
            return True
        doc = pair.doc.lower()
        opening = " ".join(doc.split()[:5])
        if self.docs[doc] >= MAX_SAME_DOC or self.name_docs[pair.name, doc] >= MAX_SAME_NAME_DOC:
            return False
        if self.openings[opening] >= MAX_SAME_FIRST_WORDS:
            return False
        self.docs[doc] += 1
        self.name_docs[pair.name, doc] += 1
        self.openings[opening] += 1
        return True


def sample_heldout(by_package: dict[str, list[Pair]], total: int = HELDOUT_TOTAL) -> list[dict[str, str]]:
    """Pick documented functions of moderate length evenly from the held-out packages."""
    rng = random.Random(17)
    share = -(-total // max(1, len(by_package)))
    chosen: list[dict[str, str]] = []
    for name, found in sorted(by_package.items()):
        usable = [p for p in found if p.doc and len(p.code) <= HELDOUT_MAX_CODE]
        picked = rng.sample(usable, min(share, len(usable)))
        chosen += [{"package": name, "name": p.name, "code": p.code, "doc": p.doc} for p in picked]
    rng.shuffle(chosen)
    return chosen


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> int:
    """Write rows as JSON lines, compressed if the name says so; return how many."""
    opener = partial(gzip.open, compresslevel=4) if path.suffix == ".gz" else open
    count = 0
    with opener(path, "wt", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def collect(folders: list[Path], verbs: frozenset[str], jobs: int) -> dict[str, list[Pair]]:
    """Extract every package, held-out ones first so that training drops what they share, and remove repeats."""
    ordered = sorted(folders, key=lambda f: (f.name not in HELDOUT, f.name))
    seen = Deduplicator()
    kept: dict[str, list[Pair]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for folder, found in zip(
            ordered, pool.map(partial(package_pairs, verbs=verbs), ordered), strict=True
        ):
            random.Random(folder.name).shuffle(found)
            kept[folder.name] = list(islice((pair for pair in found if seen.admits(pair)), MAX_PER_PACKAGE))
    return kept


def install_all(names: list[str], scratch: Path, allow_missing: bool) -> list[Path]:
    """Install the packages and return their folders; ends the program if pip cannot install one of them."""
    scratch.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as threads:
        installed = list(threads.map(partial(install, scratch=scratch), names))
    missing = [name for name, ok in zip(names, installed, strict=True) if not ok]
    if missing:
        print(f"pip could not install: {' '.join(missing)}", file=sys.stderr, flush=True)
        if not allow_missing:
            sys.exit("the corpus would not be the same; --allow-missing builds it without them")
    return [scratch / name.split("==")[0] for name, ok in zip(names, installed, strict=True) if ok]


def build(folders: list[Path], out: Path, jobs: int) -> None:
    """Run every step after the installation and write the output files."""
    out.mkdir(parents=True, exist_ok=True)
    described = {folder: describe(folder) for folder in folders}
    refused = sorted(folder.name for folder, found in described.items() if found is None)
    folders = [folder for folder in folders if described[folder]]
    print(f"{len(folders)} packages; refused for their licence: {' '.join(refused) or 'none'}", flush=True)
    with ProcessPoolExecutor(jobs) as pool:
        verbs = verb_set(sum(pool.map(first_words, folders), Counter()))
    kept = collect(folders, verbs, jobs)
    train = {name: found for name, found in kept.items() if name not in HELDOUT}
    rows = [
        {
            **found,
            "functions": str(sum(bool(p.doc) for p in kept[folder.name])),
            "split": split_of(folder.name),
        }
        for folder, found in described.items()
        if found
    ]
    (out / "packages.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "pinned.txt").write_text("".join(f"{row['name']}=={row['version']}\n" for row in rows))
    write_jsonl(out / "heldout.jsonl", sample_heldout({n: f for n, f in kept.items() if n in HELDOUT}))
    everything = [(n, p) for n, found in train.items() for p in found]
    documented = write_jsonl(
        out / "train.jsonl.gz", ({"package": n, "code": p.code, "doc": p.doc} for n, p in everything if p.doc)
    )
    plain = write_jsonl(
        out / "plain.jsonl.gz", ({"package": n, "code": p.code} for n, p in everything if not p.doc)
    )
    print(f"{documented} documented and {plain} plain functions; {len(verbs)} verbs")


def split_of(name: str) -> str:
    """Return which split a package belongs to."""
    return "held-out" if name in HELDOUT else "train"


def main() -> None:
    """Parse the command line and build."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packages-file", type=Path, default=here / "packages.txt")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where pip installs (default: OUT/packages)"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--allow-missing", action="store_true", help="go on without packages that pip cannot find"
    )
    args = parser.parse_args()
    lines = (line.strip() for line in args.packages_file.read_text().splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    folders = install_all(names, args.scratch or args.out / "packages", args.allow_missing)
    build(folders, args.out, args.jobs)


if __name__ == "__main__":
    main()
