"""Shift Parallelism: tensor parallelism and Ulysses sequence parallelism over one KV cache and one copy of the weights.

SGLang runs as tensor parallelism of all ranks, so its KV cache, radix tree and scheduler see nothing of it. The
linear layers hold the weights of the base tensor parallelism. A step of few tokens uses this rank's share of them, as
plain tensor parallelism does; a step of many uses all of them on this rank's share of the tokens, and exchanges
tokens for heads around attention alone (Ulysses, https://arxiv.org/abs/2309.14509; Shift Parallelism,
https://arxiv.org/abs/2509.16495).

`topology` says which rank holds what, `policy` which kind of parallelism a step gets, `weights` in which order rows
are stored so that a share is a view, `formats` which dimension that is in the ways to store them, `layout` how the
tensors that travel are laid out. All five are pure.
"""
