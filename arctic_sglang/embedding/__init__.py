"""Embeddings: what a checkpoint says (`checkpoint`, pure), the arithmetic (`pool`), the pooler (`pooling`)."""
