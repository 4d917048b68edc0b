"""What SGLang needs on a machine without a GPU.

`defaults` (pure) fills in server arguments, `platform` answers SGLang's platform questions, `groups` keeps
tensor parallelism on gloo, `grammar` masks logits. Slow and correct: torch's own attention, no graphs, float32.
"""
