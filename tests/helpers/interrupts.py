"""Raises KeyboardInterrupt in the n-th step of a call, as Ctrl-C may in any."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType


def interrupted(at: int, call: Callable[[], object]) -> bool:
    """Call a function, and interrupt it where the interpreter looks for signals for the n-th time.

    Return whether it came to that point. It looks at the beginning of each function, and after each function in C.
    No garbage is collected meanwhile: what a finalizer raises is lost.
    """
    left = at

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        left -= event in ("call", "c_return")
        if left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    gc.disable()
    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return False
