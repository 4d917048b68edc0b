"""A server with SwiftKV, a draft head and suffix decoding: started, asked, and ended.

    python examples/serving.py                                  # the tiny models; no GPU is needed
    python examples/serving.py --ranks 2                        # with Shift Parallelism
    python examples/serving.py --model M --quantization fp8     # flags that are not known here go to SGLang
    python examples/serving.py --model M --head H               # with a draft head that was trained for M

Flags: docs/swiftkv.md, docs/speculation.md, docs/shift.md. examples/offline.py does it without a server.
"""

import argparse
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import openai
from offline import add_arguments, options, questions, told


def flags(keywords: dict[str, object]) -> list[str]:
    """Keywords of `sglang.Engine` as flags: `enable_suffix_decoding=True` is `--enable-suffix-decoding`."""
    found = []
    for name, value in keywords.items():
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found


def healthy(url: str) -> bool:
    """Whether a server answers there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:  # nobody listens, or says yet that it starts
        return False


@contextmanager
def serving(given: list[str], minutes: float) -> Iterator[str]:
    """Starts a server, waits until it answers, gives its URL, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "sglang.launch_server", *given, "--host", "127.0.0.1", "--port", port]
    print(shlex.join(["python", *command[1:]]), flush=True)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60 * minutes
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while not healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{log.read()[-4000:]}\nno server answers; above is the end of its log")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()  # it answers what was asked, ends its processes and kills itself, all in seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=10, help="that a start may take (%(default)s)")
    args, more = parser.parse_known_args()
    with serving([*flags(options(args)), *more], args.minutes) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        asked = {"model": "any", "temperature": 0, "max_tokens": 48}
        for question in questions():
            message = [{"role": "user", "content": question}]
            extra = {"return_meta_info": True}
            answer = client.chat.completions.create(messages=message, extra_body=extra, **asked).choices[0]
            print(
                f"{answer.message.content}  ({answer.meta_info.get('spec_accept_length', 1):.1f} tokens a step)"
            )
        for chunk in client.chat.completions.create(messages=message, stream=True, **asked):
            print(repr(chunk.choices[0].delta.content))
        with urllib.request.urlopen(f"{url}/server_info") as answer:
            print(told(json.load(answer)))


if __name__ == "__main__":
    main()
