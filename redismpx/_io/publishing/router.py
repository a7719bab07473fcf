"""What a pipeline of a cluster asks for: where the calls belong whose slots another node owns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, TypeVar

from .call import Moved

_Pipeline_contra = TypeVar("_Pipeline_contra", contravariant=True)


class Router(Protocol[_Pipeline_contra]):
    """Moves the calls of a pipeline to another one. Only a cluster has a router."""

    def redirect(self, pipeline: _Pipeline_contra, moved: Collection[Moved]) -> None:
        """Move rejected calls, and all other calls in the pipeline that have their slots."""

    def place(self, pipeline: _Pipeline_contra) -> None:
        """Move the calls of a pipeline whose owners have become known, because the slot map was read meanwhile."""

    async def divert(self, pipeline: _Pipeline_contra) -> None:
        """Move the calls of a pipeline that cannot connect, if their slots have other owners by now."""
