"""The suffix index joined with another drafter: SGLang's own n-gram corpus, behind the `Proposer` protocol.

    python examples/joined_drafts.py

Plays docstrings of real functions (prompt: the function, response: its author's docstring) through the index, through
the corpus and through both, and says how many tokens each would have got from a step. No model, no GPU. SGLang
compiles its corpus at the first use, which takes a C++ compiler.
"""

import argparse
import os
from pathlib import Path

# A header that SGLang 0.5.17 leaves out, and GCC before 13 wants.
os.environ.setdefault("CXX", "c++ -include cstddef")

import numpy as np
import polars as pl
from sglang.srt.speculative.cpp_ngram.ngram_corpus import NgramCorpus
from tokenizers import Tokenizer

from speculative.base import Drafts, Int32
from speculative.cost import CostTable
from speculative.joined import Joined
from speculative.replay import Replay
from speculative.suffix import SuffixProposer, SuffixSettings
from speculative.traces import Trace

HERE = Path(__file__).parent
DRAFT = 7  # tokens of the longest draft
DEPTH = 18  # tokens that the corpus looks back; SGLang's default
TRUST = 0.3  # share of an n-gram draft that is expected to be accepted; the corpus does not say


class NgramProposer:
    """SGLang's `NgramCorpus` as a `Proposer`: the likeliest path through its trie."""

    def __init__(self) -> None:
        self._corpus = NgramCorpus(
            max_trie_depth=DEPTH, max_bfs_breadth=1, draft_token_num=1 + DRAFT, capacity=1_000_000
        )
        self._texts: dict[int, list[int]] = {}
        self._started = 0

    def start(self, prompt: Int32, response: Int32) -> int:
        """See `Proposer.start`."""
        self._started += 1
        self._texts[self._started] = [*prompt.tolist(), *response.tolist()]
        self._corpus.batch_put([self._texts[self._started]])
        return self._started

    def step(self, slots: Int32, tokens: Int32, offsets: Int32, limits: Int32) -> Drafts:
        """See `Proposer.step`."""
        texts = [self._texts[slot] for slot in slots.tolist()]
        for text, begin, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
            text += tokens[begin:end].tolist()
        ends = [text[-DEPTH:] for text in texts]
        self._corpus.batch_put(ends)
        self._corpus.synchronize()
        found, tree = self._corpus.batch_get(
            [str(slot) for slot in slots], ends, [len(text) for text in texts]
        )
        # The tree is a path: each of its tokens follows all before it.
        shape = len(texts), 1 + DRAFT
        path = np.tril(np.ones((1 + DRAFT, 1 + DRAFT), bool))
        follows = (np.array(tree, bool).reshape(*shape, 1 + DRAFT) == path).all(axis=2)
        lengths = np.minimum(np.logical_and.accumulate(follows, axis=1).sum(axis=1) - 1, limits)
        drafts = np.array(found, np.int32).reshape(shape)[:, 1:]
        drafts *= np.arange(DRAFT) < lengths[:, None]
        return Drafts(drafts, lengths.astype(np.int32), (TRUST * lengths).astype(np.float32))

    def work(self) -> None:
        """Nothing is put off."""

    def stop(self, slot: int) -> None:
        """See `Proposer.stop`."""
        del self._texts[slot]
        self._corpus.erase_match_state([str(slot)])

    def clear(self) -> None:
        """See `Proposer.clear`."""
        self._corpus.reset()


def traces() -> list[Trace]:
    """Functions and their docstrings, as token ids of the tiny model."""
    tokenizer = Tokenizer.from_file(str(HERE / "tiny_lm" / "model" / "tokenizer.json"))
    table = pl.read_parquet(HERE / "data" / "functions.parquet", columns=["code", "docstring"])

    def ids(text: str) -> Int32:
        return np.array(tokenizer.encode(text).ids, np.int32)

    return [Trace(ids(code), ids(docstring)) for code, docstring in table.iter_rows() if docstring]


def main() -> None:
    """Plays all three."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    suffix = SuffixSettings(max_draft=DRAFT)
    sources = {
        "suffix index": SuffixProposer(suffix),
        "n-gram corpus": NgramProposer(),
        "both": Joined(SuffixProposer(suffix), NgramProposer()),
    }
    played, table = traces(), CostTable.linear((1, 2, 4, 8), 32)
    for name, source in sources.items():
        replay = Replay(source, table, concurrency=8, longest=DRAFT, whole=True)
        outcome = replay.run(played)
        print(f"{name:14} {outcome.counts.accept_length:.3f} tokens a step")


if __name__ == "__main__":
    main()
