"""Programs that each need SGLang, in forks of one process that has imported it: that takes most of their time.

Usage: forks.py FOLDER. Reads from stdin a JSON of [Python code, arguments] by name; each runs as `python -c` would run
it, plugins not yet loaded, and writes to FOLDER/NAME. Prints a JSON of their exit codes.
"""

import json
import os
import sys
from pathlib import Path

import sglang.srt.server_args  # noqa: F401  what all of them need


def main():
    folder, programs, running = Path(sys.argv[1]), json.load(sys.stdin), {}
    for name, (code, arguments) in programs.items():
        child = os.fork()
        if child:
            running[child] = name
            continue
        output = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["-c", *arguments]
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
        return
    ended = {name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, name in running.items()}
    print("\n" + json.dumps(ended))


if __name__ == "__main__":
    main()
