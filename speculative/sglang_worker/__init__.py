"""Speculative decoding inside SGLang: the two algorithms, their worker, and what a CPU needs for them.

algorithm   what SGLang's registry is given, and what the arguments become
worker      the worker that SGLang's scheduler calls for every step
drafting    the host's side of a step: which drafts, how wide
relay       what a step leaves for the next
staging     drafts on their way to the device
head        the draft head on this rank
memory      the suffix index over restarts
verify      a step's forward and what is accepted of it
widths      one attention backend and one set of CUDA graphs for each width of a step
cpu         SGLang's two functions that have no form for a CPU
"""
