"""JSON and YAML that mean one thing only: what readers take differently, or drop, is refused.

`json.loads` takes NaN and lets the last of two equal keys win, PyYAML reads `yes` as true, `010` as
8 and `1:30` as 90. This module is light: settings are read with it.
"""

import json
import re
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is no JSON, which has no NaN and no infinity; a number is beyond float64, an
        object has a key twice, or it is nested too deep.
    """
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique
        )
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if abs(value) == float("inf"):
        raise ValueError(f"{digits[:40]} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"a key occurs twice in one object: {twice[:40]!r}")
    return values


def read_yaml(text: str) -> Any:
    """The value of a YAML text by the core schema of YAML 1.2: texts, numbers, true, false, null,
    lists, and maps by text.

    Raises:
      ValueError: it is no YAML; a key stands twice; it uses aliases or other tags; a number has a
        leading zero, which versions of YAML read in different bases; or it holds characters that
        only some of them take for the end of a line.
    """
    if odd := re.search("[\x85\u2028\u2029]", text):
        line = text.count("\n", 0, odd.start()) + 1
        raise ValueError(
            f"line {line}: U+{ord(odd[0]):04X} ends a line for some readers only; remove it"
        )
    try:
        node = _Nodes(text).get_single_node()
        return None if node is None else _value(node)
    except RecursionError:
        raise ValueError("not YAML that makes sense here (nested too deep)") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from None


_TAG = "tag:yaml.org,2002:"
# Scalars without quotes and tags, by what they are; the first that fits. Others are texts.
_SCALARS = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "str": "(?s:.*)",
}


class _Nodes(Reader, Scanner, Parser, Composer, BaseResolver):
    """A YAML text as nodes whose tags are those of the core schema."""

    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; aliases are refused."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases are not read; write the value out", mark)
        return super().compose_node(parent, index)

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that names none."""
        if kind is yaml.ScalarNode and implicit[0]:  # not in quotes
            fits = (name for name, form in _SCALARS.items() if re.fullmatch(form, value))
            return _TAG + next(fits)
        return super().resolve(kind, value, implicit)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _value(node: yaml.Node) -> Any:
    name = node.tag.removeprefix(_TAG)
    if isinstance(node, yaml.SequenceNode) and name == "seq":
        return [_value(each) for each in node.value]
    if isinstance(node, yaml.MappingNode) and name == "map":
        return _map(node)
    # A scalar may name a tag that it does not fit, as in `!!bool yes`.
    if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(
        _SCALARS.get(name, "(?!)"), node.value
    ):
        raise ComposerError(None, None, f"the tag {node.tag!r} is not read here", node.start_mark)
    return _scalar(node, name)


def _map(node: yaml.MappingNode) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
            shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or map"
            raise ValueError(f"line {_line(key)}: the key {shown} is not a text")
        name = _text(key)
        if name in first:
            raise ValueError(
                f"line {_line(key)}: {name!r} stands twice, first in line {first[name]}; remove one"
            )
        first[name] = _line(key)
        values[name] = _value(value)
    return values


def _scalar(node: yaml.ScalarNode, name: str) -> bool | int | float | str | None:
    text = node.value
    if name == "null":
        return None
    if name == "bool":
        return text.casefold() == "true"
    if name == "int":
        if re.fullmatch(r"[-+]?0[0-9]+", text):
            raise ValueError(
                f"line {_line(node)}: {text!r} begins with a zero, which some readers take for "
                f"base 8; write {int(text)}, or {text!r} in quotes for a text"
            )
        return int(text, 0)
    if name == "float":
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)  # of .inf and .nan
    return _text(node)


def _text(node: yaml.ScalarNode) -> str:
    half = next((c for c in node.value if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise ValueError(f"line {_line(node)}: U+{ord(half):04X} is half a character")
    return node.value
