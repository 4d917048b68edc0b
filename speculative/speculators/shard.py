"""Which part of the vocabulary a rank's head holds. Pure arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VocabShard:
    """One of `size` consecutive parts of the vocabulary, as equal as can be.

    With tensor and sequence parallelism together the parts are those of one group of all TP * SP ranks, each rank
    of it holding one part; which rank holds which part is of no account, as long as each part has a holder.

    Attributes:
        rank: of this part, from 0.
        size: how many parts there are.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            msg = f"rank {self.rank} of {self.size} vocabulary shards; wanted is 0 <= rank < size"
            raise ValueError(msg)

    def tokens(self, vocab_size: int) -> range:
        """The token ids of this part.

        Raises:
            ValueError: there are more parts than tokens.
        """
        if vocab_size < self.size:
            msg = f"a vocabulary of {vocab_size} cannot be parted among {self.size} ranks; use fewer"
            raise ValueError(msg)
        return range(self.rank * vocab_size // self.size, (self.rank + 1) * vocab_size // self.size)


WHOLE = VocabShard()
