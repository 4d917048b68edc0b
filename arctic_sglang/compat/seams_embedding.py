"""The vectorised road's rows of the table of seams."""

from arctic_sglang.compat.seam import Kind, Role, Seam
from arctic_sglang.features import Feature

_SCHEDULER = frozenset({Role.SCHEDULER})
_MAIN = frozenset({Role.MAIN})
_EXIT = "a vectorised road for embeddings in SGLang"

ROWS: tuple[Seam, ...] = ()
