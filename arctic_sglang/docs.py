"""Pages of the documentation that are generated from the code. `make docs` writes them."""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

from arctic_sglang.compat.seams import SEAMS
from arctic_sglang.recommend.__main__ import main as recommend

_EXAMPLE = re.compile(r"```\n\$ arctic-recommend (.*)\n(?:.*\n)*?```")


def seams_page() -> str:
    """`docs/seams.md`: the table of every touch of SGLang."""
    lines = [
        "# Seams: every touch of SGLang's internals",
        "",
        "Generated from `arctic_sglang/compat/seams.py` by `make docs`. `arctic-doctor` checks each row against",
        "the installed SGLang; a missing or changed target stops a server that asked for the feature.",
        "",
        "| seam | target | kind | relies on | processes | SGLang | why | goes when |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seam in SEAMS:
        relied = ", ".join(f"`{name}`" for name in (*seam.params, *seam.members)) or "-"
        roles = "all" if len(seam.roles) > 1 else next(iter(seam.roles)).value
        lines.append(
            f"| `{seam.id}` | `{seam.target}` | {seam.kind} | {relied} | {roles} | {seam.versions} "
            f"| {seam.why} | {seam.exit} |"
        )
    return "\n".join(lines) + "\n"


def choosing_page(page: str) -> str:
    """`docs/choosing.md` with the output of each of its examples as it is now; paths are those of a checkout.

    Args:
        page: its text. An example is a block that begins with `$ arctic-recommend` and its arguments.
    """

    def shown(example: re.Match[str]) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            recommend(shlex.split(example[1]))
        return f"```\n$ arctic-recommend {example[1]}\n{out.getvalue()}```"

    return _EXAMPLE.sub(shown, page)


def main() -> None:
    """Writes the generated pages into the folder given (default `docs`)."""
    options = argparse.ArgumentParser(prog="python -m arctic_sglang.docs", description=main.__doc__)
    options.add_argument("folder", nargs="?", type=Path, default=Path("docs"))
    folder = options.parse_args().folder
    (folder / "seams.md").write_text(seams_page(), encoding="utf-8")
    page = folder / "choosing.md"
    page.write_text(choosing_page(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
