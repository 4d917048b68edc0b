"""One rank of `test_three_processes_over_gloo`: a file where the ranks meet, how many they are, which this is."""

import sys
from datetime import timedelta

import torch
from torch import distributed

from speculative.speculators import SpeculatorConfig, VocabShard, build
from speculative.speculators.drafter import Drafter, gather_over


def main(store: str, ranks: int, rank: int) -> None:
    """Drafts with its shard and compares with the whole."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=40)
    )
    config = SpeculatorConfig.lstm(16, 8, 101, scale_input=True)
    whole, part = build(config), build(config, VocabShard(rank, ranks))
    torch.manual_seed(1)
    whole.reset_parameters()
    rows = part.shard.tokens(config.vocab_size)
    values = whole.state_dict()
    values["head.0.weight"] = values["head.0.weight"][rows.start : rows.stop]
    part.load_state_dict(values)
    drafter = Drafter(part, gather=gather_over(distributed.group.WORLD))
    for batch in (1, 7):
        hidden, tokens = torch.randn(batch, 16), torch.randint(101, (batch,))
        assert torch.equal(drafter.draft(hidden, tokens, 4), whole.draft(hidden, tokens, 4))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
