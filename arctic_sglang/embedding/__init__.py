"""Embeddings: what a checkpoint says (`checkpoint`, pure), its arithmetic (`pool`, `head`), the pooler (`pooling`)."""
