"""Suffix decoding: drafts copied from what the request, or any request before it, has said already."""

from speculative.suffix.proposer import SuffixProposer
from speculative.suffix.settings import SuffixSettings
from speculative.suffix.twin import SuffixTwin

__all__ = ["SuffixProposer", "SuffixSettings", "SuffixTwin"]
