"""Embeddings: what a checkpoint says and its pooling, and the vectorised road from texts to vectors; docs/rooms.md."""
