"""Speculative decoding for SGLang: suffix decoding and draft heads. Nothing is in this release yet."""
