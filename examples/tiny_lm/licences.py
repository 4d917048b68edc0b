"""Decide from a package's metadata whether its source may be used."""

from __future__ import annotations

import re
from email.message import Message

#: One of these must be present.
ALLOWED = {
    "MIT": "MIT",
    "BSD-2-CLAUSE": "BSD-2-Clause",
    "BSD-3-CLAUSE": "BSD-3-Clause",
    "APACHE-2.0": "Apache-2.0",
    "PSF-2.0": "PSF-2.0",
    "PYTHON-2.0": "PSF-2.0",
    "ISC": "ISC",
}
#: Permissive terms that large packages list beside their own licence for a bundled file or two.
COMPANIONS = frozenset(
    {"0BSD", "MIT-0", "ZLIB", "CC0-1.0", "BSL-1.0", "MIT-CMU", "NCSA", "BSD-3-CLAUSE-OPEN-MPI"}
)
_REFUSED = re.compile(
    r"gpl|gnu|mozilla|mpl|eupl|cecill|non-?commercial|proprietary|business|sspl|elastic", re.IGNORECASE
)
_FREE_TEXT = (
    (re.compile(r"apache", re.IGNORECASE), "Apache-2.0"),
    (re.compile(r"\bbsd[- ]?2|\b2-clause|simplified bsd", re.IGNORECASE), "BSD-2-Clause"),
    (re.compile(r"\bbsd|\b3-clause", re.IGNORECASE), "BSD-3-Clause"),
    (re.compile(r"\bmit\b", re.IGNORECASE), "MIT"),
    (re.compile(r"\bisc\b|\biscl\b", re.IGNORECASE), "ISC"),
    (re.compile(r"\bpsf|python software foundation", re.IGNORECASE), "PSF-2.0"),
)


def from_expression(expression: str) -> str | None:
    """Return the licence of an SPDX expression if every AND part offers an allowed or companion term."""
    found: list[str] = []
    for clause in re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " "), flags=re.IGNORECASE):
        options = [term.strip().upper() for term in re.split(r"\s+OR\s+", clause, flags=re.IGNORECASE)]
        allowed = [ALLOWED[term] for term in options if term in ALLOWED]
        if not allowed and not any(term in COMPANIONS for term in options):
            return None
        found += allowed[:1]
    return " AND ".join(dict.fromkeys(found)) or None


def _from_text(text: str) -> str | None:
    """Return the licence a short free-form field names, or None."""
    if _REFUSED.search(text):
        return None
    return next((name for pattern, name in _FREE_TEXT if pattern.search(text)), None)


def licence_of(metadata: Message) -> str | None:
    """Return a package's allowed licence from its core metadata, or None when it must be refused."""
    expression = metadata.get("License-Expression")
    if expression:
        return from_expression(str(expression))
    trove = [str(c) for c in metadata.get_all("Classifier", []) if str(c).startswith("License ::")]
    if any(_REFUSED.search(c) for c in trove):
        return None
    line = (str(metadata.get("License") or "").strip().splitlines() or [""])[0]
    # The free-form field may hold a whole licence: only its first line names it.
    if line and len(line) < 100:
        if _REFUSED.search(line):
            return None
        named = _from_text(line)
        if named:
            return named
    return next((named for named in map(_from_text, trove) if named), None)
