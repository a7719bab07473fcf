"""The logger of the library. Never raises: an exception in a user's filter or handler must not cost a connection."""

from __future__ import annotations

import logging
import traceback
from typing import Any


class _Logger(logging.LoggerAdapter[logging.Logger]):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, stacklevel=2, **kwargs)
        except Exception:  # noqa: BLE001, users' code
            if logging.raiseExceptions:  # as logging itself does with a handler that cannot write
                traceback.print_exc()


logger = _Logger(logging.getLogger("redismpx"))
