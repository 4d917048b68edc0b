"""The front door: what SGLang calls when it looks for plugins.

`platform` is asked in every process, before anything else; `register` in those that load plugins. Both
only prepare. What a start asks for is known, judged and applied in `compat.server_args`.
"""

import dataclasses
import logging
import sys
from typing import Any

import speculative.config
import swiftkv.config
from arctic_sglang import env
from arctic_sglang.compat import apply, process, source, vendor, verify
from arctic_sglang.compat.seams import SEAMS, seams_of
from arctic_sglang.config import ArcticConfig, flag_name
from arctic_sglang.features import Feature

logger = logging.getLogger(__name__)


def platform() -> str | None:
    """Entry point of `sglang.srt.platforms`: our CPU platform on a machine with no accelerator, else None.

    Called while SGLang's modules are being imported, so only the light `flags.help` seam is applied here.
    """
    help_seam = [seam for seam in SEAMS if seam.id == "flags.help"]
    try:
        if not verify.verify(help_seam, source.installed_root()):
            apply.apply(help_seam, process.role())
    except verify.SeamError as error:  # the flags work without it, but for one page of help
        logger.warning("arctic-sglang: %s", error)
    if env.cpu_engine_requested() or vendor.accelerator() is not None:
        return None
    return "arctic_sglang.cpu.platform:CpuPlatform"


def register() -> None:
    """Entry point of `sglang.srt.plugins`: adds the flags. Idempotent.

    Where the flags do not fit the installed SGLang, or another plugin is in their place, stock SGLang starts
    with a warning, unless one of our flags is on the command line: then the process ends here. SGLang would
    swallow any other exception and go on to call the flag unknown.
    """
    speculative.config.register()
    swiftkv.config.register()  # SGLang reads a model's config long before it is known what it is
    seams = seams_of(frozenset({Feature.FLAGS}))
    try:
        problems = verify.verify(seams, source.installed_root())
        verify.judge(problems, requested=frozenset({Feature.FLAGS}))
        apply.apply(seams, process.role())
    except verify.SeamError as error:
        if _flags_on_command_line():
            sys.exit(f"error: {error}")
        logger.warning("arctic-sglang adds no flags, and stock SGLang starts: %s", error)


def _flags_on_command_line() -> list[str]:
    names = [flag_name(f.name) for f in dataclasses.fields(ArcticConfig)]
    return [n for n in names if any(a == n or a.startswith(f"{n}=") for a in sys.argv[1:])]


def before_add_cli_args(
    parser: Any, cls: type, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Loads plugins before flags are listed, for commands that list flags without having loaded them.

    Args:
        parser: the argument parser that SGLang fills.
        cls: the class whose fields become flags; replaced where it is SGLang's own.
        kwargs: passed on.
    """
    vendor.load_plugins()
    current = vendor.ServerArgs
    if cls is not current and issubclass(current, cls):
        return (parser, current), kwargs
    return None
