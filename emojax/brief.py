"""Results shown briefly: arrays by type and shape, long values by their beginning.

A record of a VGGNet has 20 million numbers; a notebook that ends in `record` shows what it is.
"""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

_Class = TypeVar("_Class")
_LONGEST = 60  # characters of a value


def brief(cls: type[_Class]) -> type[_Class]:
    """Gives a dataclass a short `repr`, and a table for notebooks."""

    def rows(self: Any) -> list[tuple[str, str]]:
        return [
            (field.name, _shown(getattr(self, field.name)))
            for field in dataclasses.fields(self)
            if field.repr
        ]

    def text(self: Any) -> str:
        fields = (f"{name}={value}" for name, value in rows(self))
        return f"{type(self).__name__}({', '.join(fields)})"

    def table(self: Any) -> str:
        cells = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in rows(self)
        )
        return f"<table><caption>{type(self).__name__}</caption>{''.join(cells)}</table>"

    setattr(cls, "__repr__", text)  # noqa: B010 - a type checker refuses the plain assignment
    setattr(cls, "_repr_html_", table)  # noqa: B010
    return cls


def _shown(value: Any) -> str:
    """One value in a few words."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    names = getattr(value, "_fields", None)  # of a NamedTuple
    if names is not None:
        fields = (f"{name}={_shown(part)}" for name, part in zip(names, value, strict=True))
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, Mapping | Sequence | set) and not isinstance(value, str | bytes):
        short = repr(value) if len(value) < _LONGEST else ""
        return short if 0 < len(short) <= _LONGEST else f"{type(value).__name__} of {len(value)}"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    words = repr(value)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
