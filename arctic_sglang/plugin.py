"""The front door: what SGLang calls when it looks for plugins.

`platform` is asked in every process, before anything else; `register` in those that load plugins. Both
only prepare. What a start asks for is known, judged and applied in `compat.server_args`.
"""

import logging
from typing import Any

from arctic_sglang import env
from arctic_sglang.compat import apply, process, source, vendor, verify
from arctic_sglang.compat.seams import SEAMS, seams_of
from arctic_sglang.features import Feature

logger = logging.getLogger(__name__)


def platform() -> str | None:
    """Entry point of `sglang.srt.platforms`: our CPU platform on a machine with no accelerator, else None.

    Called while SGLang's modules are being imported, so only the light `flags.help` seam is applied here.
    """
    help_seam = [seam for seam in SEAMS if seam.id == "flags.help"]
    if not verify.verify(help_seam, source.installed_root()):
        apply.apply(help_seam, process.role())
    if env.cpu_engine_requested() or vendor.accelerator() is not None:
        return None
    return "arctic_sglang.cpu.platform:CpuPlatform"


def register() -> None:
    """Entry point of `sglang.srt.plugins`: adds the flags. Idempotent.

    With an SGLang that the flags do not fit, nothing is touched but a warning: stock SGLang starts, and
    refuses our flags as unknown if any is given.
    """
    seams = seams_of(frozenset({Feature.FLAGS}))
    problems = verify.verify(seams, source.installed_root())
    if problems:
        verify.judge(problems, requested=frozenset())
        return
    apply.apply(seams, process.role())


def before_add_cli_args(parser: Any, cls: type, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
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
