"""What examples in the docs run on, in any process."""

from __future__ import annotations

from batch_sdk.engines.dummy import DummyEngine


class Stand(DummyEngine):
    """Stands for SGLang, whose options it takes and forgets."""

    def __init__(self, **kw):
        super().__init__(**{**kw, "options": {}})
