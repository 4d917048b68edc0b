"""A plugin for SGLang that gives every rank another clock: a draft of the head takes rank 1 a second longer.

Ranks whose steps followed from their own clocks would take steps of different widths, and wait for each other.
"""


def register() -> None:
    """Called by SGLang in every process."""
    from arctic_sglang.compat import vendor
    from speculative.sglang_worker.head import Head

    measured = Head.prepare

    def prepare(head: Head, rows: int) -> float:
        return measured(head, rows) + vendor.get_tp_group().rank_in_group

    Head.prepare = prepare
