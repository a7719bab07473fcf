"""How the documentation is built: `python -m sphinx -W -n -b html docs docs/_build/html`."""

import re
from typing import Any

from sphinx.application import Sphinx

import redismpx

project = "redismpx"
author = "The redismpx developers"
project_copyright = "The redismpx developers"
version = release = redismpx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
templates_path: list[str] = []

# --- Markdown and docstrings

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings quote code with single backticks
napoleon_numpy_docstring = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
autodoc_type_aliases = {
    name: f"redismpx.typing.{name}"
    for name in ("OnMessage", "Decode", "OnDisconnect", "OnActivation", "OnError", "Payload")
} | {"Handler": "redismpx.request.Handler"}

# --- references that lead out of this site: it is built without a network, so without other projects' inventories

nitpicky = True
nitpick_ignore = [
    ("py:class", "redis.asyncio.client.Redis"),  # redis-py
    ("py:class", "redis.asyncio.cluster.RedisCluster"),
    ("py:class", "redis.backoff.AbstractBackoff"),
    ("py:class", "collections.abc.Callable"),  # Python
    ("py:class", "collections.abc.AsyncGenerator"),
    ("py:class", "collections.abc.Awaitable"),
    ("py:class", "collections.abc.Mapping"),
    ("py:class", "collections.abc.Mapping[str"),
    ("py:class", "datetime.datetime"),
    ("py:class", "Buffer"),
    ("py:class", "asyncio.exceptions.CancelledError"),
    ("py:class", "T"),  # what `decode` returns
    ("py:class", "redismpx.typing.T"),
    ("py:obj", "redismpx.typing.T"),
]

# --- HTML

html_theme = "furo"
html_title = f"redismpx {release}"
html_show_sourcelink = False
html_copy_source = False


# --- where autodoc needs help


def setup(app: Sphinx) -> None:
    """Hook in around napoleon, which listens to the same event with priority 500."""
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("autodoc-process-docstring", keep_attribute, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)


_ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
_kept: dict[str, list[str]] = {}


def name_aliases(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show an alias by its name inside a union too, where autodoc shows the repr of its stand-in."""
    return signature and _ALIAS.sub(r"\1", signature), returns


def keep_attribute(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Keep what an attribute's docstring says: napoleon would take `words: more words` for `type: description`."""
    if what in ("attribute", "property", "data"):
        _kept[name] = lines[:]


def restore_attribute(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Put back what was kept."""
    if name in _kept:
        lines[:] = _kept.pop(name)
