"""`arctic-recommend`: flags for a model, some GPUs and a kind of traffic, each with its reason. No SGLang in it.

`sizes` says what a model takes of a GPU, `evidence` what was measured, `judge` what would be refused, `ways` how GPUs
can be used and why; `policy` chooses, `answer` has the words for all of it, `show` writes it down; `__main__` is the
command line.
"""
