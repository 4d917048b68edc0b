"""How functions are compiled that a step cannot wait for in Python."""

from collections.abc import Callable
from typing import Any

import numba


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call; kept on disk where numba finds a folder that it may write to."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba's way of saying that there is none
        return numba.njit(nogil=True)(function)
