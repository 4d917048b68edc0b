"""Every touch of SGLang's internals.

`seams` is the table and the only list; `source` and `verify` check it against an installed SGLang without
importing it; `apply` puts it into a process and proves that it is there; `vendor` holds the imports and
`server_args` the one class that is replaced. Nothing outside this folder imports `sglang.srt`.
"""
