"""Embeddings: what a checkpoint says about its pooling (`checkpoint`, pure) and the pooler (`pooling`)."""
