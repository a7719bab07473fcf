"""What can be told of an exception that users' code raised. No I/O, and no call of that code, which may raise again."""

from __future__ import annotations


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Tell whether an exception is of one of these classes. `isinstance()` may ask the exception, which may raise."""
    return issubclass(type(error), kinds)


def name_of(error: BaseException) -> str:
    """Return the name of the class of an exception. A metaclass may have a property instead, or reject `hash()`."""
    name: str = vars(type)["__name__"].__get__(type(error))
    return name


def first_line(error: BaseException) -> str:
    """Return the first line of the text of an exception; an empty text if it raises instead.

    Libraries that validate data repeat the data in the lines after the first.
    """
    try:
        return next(iter(str(error).splitlines()), "")
    except Exception:  # noqa: BLE001, users' code
        return ""
