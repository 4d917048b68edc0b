"""Process groups of a machine without a GPU: gloo alone."""

from typing import Any


def before_group_init(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turns off the communicators that need a GPU, before `GroupCoordinator.__init__`.

    Raises:
        TypeError: SGLang passed them by position, so the wrong argument might be changed.
    """
    for name in ("use_pynccl", "use_custom_allreduce"):
        if name not in kwargs:
            msg = (
                f"GroupCoordinator was made without the keyword {name}; arctic-sglang cannot keep it on gloo"
            )
            raise TypeError(msg)
        kwargs[name] = False
    return args, kwargs
