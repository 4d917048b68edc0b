"""What a touch of SGLang's internals is.

Order of preference for a new row: register, subclass, call, before, after, around, replace. SGLang's
signatures and bodies move between releases while its registries do not, so each step down needs its
reason in `why`, and `params` names every parameter that our side relies on.
"""

from dataclasses import dataclass
from enum import StrEnum

from arctic_sglang.features import Feature


class Kind(StrEnum):
    """How SGLang is touched. The last four go through SGLang's `HookRegistry`."""

    REGISTER = "register"
    SUBCLASS = "subclass"
    CALL = "call"
    SET = "set"  # a class attribute that SGLang documents as replaceable
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


HOOKED = frozenset({Kind.BEFORE, Kind.AFTER, Kind.AROUND, Kind.REPLACE})


class Role(StrEnum):
    """A process of a server, told by the SGLang modules that it has imported."""

    MAIN = "main"
    SCHEDULER = "scheduler"
    DETOKENIZER = "detokenizer"
    CONTROLLER = "controller"  # data-parallel controller
    TOKENIZER = "tokenizer"  # extra tokenizer worker


EVERYWHERE = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Seam:
    """One touch of SGLang.

    Attributes:
        id: short name, `feature.what`.
        target: dotted path in SGLang.
        kind: how it is touched.
        feature: who needs it.
        why: one sentence.
        hook: `module:attribute` of our side; empty for SUBCLASS and CALL.
        params: parameters that we rely on, in the order of the signature.
        members: attributes of a class that we rely on.
        roles: processes in which it is applied.
        versions: SGLang releases it was tested with.
        exit: what would let us delete the row.
    """

    id: str
    target: str
    kind: Kind
    feature: Feature
    why: str
    hook: str = ""
    params: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    roles: frozenset[Role] = EVERYWHERE
    versions: str = "==0.5.17"
    exit: str = ""
