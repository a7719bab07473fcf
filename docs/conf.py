"""Sphinx configuration. Build: `python -m sphinx -W -n -b html docs docs/_build/html`."""

import inspect
import re
import typing
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

import redismpx
import redismpx.blocking
from redismpx.blocking.reading import Reading

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
default_role = "py:obj"  # names in single backticks in docstrings: a link if this site documents the name, else code
napoleon_numpy_docstring = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 120  # with full names; a longer one has a parameter on each line
autodoc_type_aliases = {
    name: f"redismpx.typing.{name}"
    for name in ("OnMessage", "Decode", "OnDisconnect", "OnActivation", "OnError", "Payload")
} | {"Handler": "redismpx.request.Handler"}

# --- external references: the build has no network, so it has no inventories of other projects

nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # see default_role
    ("py:class", r"starlette\..*|opentelemetry\..*|prometheus_client\..*|(Tracer|Meter)Provider|Metric|Span"),
    ("py:class", r"(redismpx\.contrib\._figures\.)?AnyMultiplexer"),
    ("py:class", r"(redismpx\.contrib\.starlette\.)?_?(Event|Frame|Sent|Subscription).*"),
    ("py:class", r"broadcaster\..*|litestar\..*|BackendEvent|.*GapHook.*|.*_feed\.GapFeed"),
    ("py:class", r"Mapping.*|Awaitable.*|Callable.*|contextlib\.AbstractAsyncContextManager"),
]
nitpick_ignore = [
    ("py:class", "redis.asyncio.client.Redis"),  # redis-py
    ("py:class", "redis.asyncio.cluster.RedisCluster"),
    ("py:class", "redis.backoff.AbstractBackoff"),
    ("py:exc", "redis.exceptions.RedisError"),
    ("py:class", "collections.abc.Callable"),  # Python
    ("py:class", "collections.abc.AsyncGenerator"),
    ("py:class", "collections.abc.Coroutine"),
    ("py:class", "collections.abc.AsyncIterator"),
    ("py:class", "AbstractAsyncContextManager"),
    ("py:class", "AbstractContextManager"),
    ("py:class", "collections.abc.Iterator"),
    ("py:class", "redismpx.topics.periodic.F"),
    ("py:exc", "queue.Empty"),
    ("py:exc", "queue.Full"),
    ("py:class", "collections.abc.Awaitable"),
    ("py:class", "collections.abc.Iterable"),
    ("py:class", "collections.abc.Mapping"),
    ("py:class", "collections.abc.Sequence"),
    ("py:class", "redismpx.blocking.multiplexer.Outcome"),
    ("py:class", "collections.abc.Mapping[str"),
    ("py:class", "datetime.datetime"),
    ("py:class", "ssl.SSLContext"),
    ("py:class", "os.PathLike"),
    ("py:class", "Buffer"),
    ("py:class", "asyncio.exceptions.CancelledError"),
    ("py:exc", "asyncio.InvalidStateError"),
    ("py:exc", "asyncio.QueueEmpty"),
    ("py:exc", "redis.exceptions.ResponseError"),
    ("py:class", "T"),  # the result type of `decode`
    ("py:class", "_S"),  # what `encode` takes
    ("py:class", "redismpx.multiplexer._S"),
    ("py:class", "_Encodable"),  # the same for threads
    ("py:class", "redismpx.blocking.multiplexer._Encodable"),
    ("py:class", "redismpx.topics.topics._Function"),
    ("py:class", "redismpx.blocking.topics._Function"),
    ("py:class", "redismpx.request.Body"),
    ("py:class", "redismpx.request._Result"),
    ("py:class", "redismpx.typing.T"),
    ("py:obj", "redismpx.typing.T"),
]

# --- HTML

html_theme = "furo"
html_title = f"redismpx {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]


# --- corrections for autodoc


def setup(app: Sphinx) -> None:
    """Connect the hooks. Napoleon handles the same event with priority 500, so ours run before and after it."""
    ModuleAnalyzer.analyze = analyze_without_overloads  # type: ignore[method-assign]
    app.connect("doctree-read", box_pictures)
    app.connect("autodoc-process-signature", name_types)
    app.connect("autodoc-process-docstring", keep_attribute, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)


def box_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Put each picture into a box: on a phone, site.css shows it in a readable size, and the box scrolls."""
    for image in list(doctree.findall(nodes.image)):
        image.replace_self(nodes.container("", image.deepcopy(), classes=["picture"]))


_analyze = ModuleAnalyzer.analyze


def analyze_without_overloads(self: ModuleAnalyzer) -> None:
    """Forget the overloads, so that autodoc shows one signature: that of the implementation, with all parameters."""
    _analyze(self)
    self.overloads = {}


_ALIAS = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
_GENERATOR = re.compile(r"^~?(?:collections\.abc\.)?(Async|)(?:Iterator|Generator)\[")
_READ = re.compile(r"~redismpx\.blocking\.reading\._(M|E)\b")
_PRIVATE = re.compile(r"\b_([A-Z]\w*)")
_FUNCTION = re.compile(r"<function _\w+>")
_kept: dict[str, list[str]] = {}


def name_types(
    app: Sphinx, what: str, name: str, obj: object, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show a type alias by its name in a union too, a context manager as one, and no private name.

    Autodoc shows the repr of a forward reference, what the generator function yields, the type variables of a base
    class, and the underscore of a type variable.
    """
    wrapped = getattr(obj, "__wrapped__", None)
    if returns and (inspect.isgeneratorfunction(wrapped) or inspect.isasyncgenfunction(wrapped)):
        returns = _GENERATOR.sub(r"Abstract\1ContextManager[", returns)
    read = find_types_of_reading(name)

    def correct(text: str) -> str:
        concrete = _READ.sub(lambda match: read[match[1]], _ALIAS.sub(r"\1", text))
        return _FUNCTION.sub("...", _PRIVATE.sub(r"\1", concrete))

    return signature and correct(signature), returns and correct(returns)


def find_types_of_reading(name: str) -> dict[str, str]:
    """Return the types that a subscription for threads has for M and E of `Reading`: its messages, and its events."""
    owner = getattr(redismpx.blocking, name.split(".")[-2], None)
    for base in getattr(owner, "__mro__", ()):
        for generic in vars(base).get("__orig_bases__", ()):
            if typing.get_origin(generic) is Reading and base is not Reading:
                message, event = (stringify_annotation(each, "smart") for each in typing.get_args(generic))
                return {"M": message, "E": event}
    return {}


def keep_attribute(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Save the docstring of an attribute. Napoleon would read `words: more words` as `type: description`."""
    if what in ("attribute", "property", "data"):
        _kept[name] = lines[:]


def restore_attribute(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Restore the saved docstring of an attribute."""
    if name in _kept:
        lines[:] = _kept.pop(name)
