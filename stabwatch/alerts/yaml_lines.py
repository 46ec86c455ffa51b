"""YAML with line numbers, so that errors can name the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stabwatch.errors import RuleError


@dataclass(frozen=True)
class Entry:
    """A mapping of a file, with the line of each key."""

    path: Path
    values: dict[str, Any]
    lines: dict[str, int]
    line: int
    nodes: dict[str, yaml.Node]

    def fail(self, message: str, key: str = "") -> RuleError:
        """The error to raise, with the line of a key."""
        return RuleError(f"{self.path}:{self.lines.get(key, self.line)}: {message}")

    def only(self, known: Sequence[str]) -> None:
        """Raise RuleError if a key is unknown."""
        for key in self.values:
            if key not in known:
                raise self.fail(f"`{key}` is unknown. Known keys: {', '.join(known)}.", key)

    def number(self, key: str, value: Any, least: float | None = None) -> float:
        """A number. Raises RuleError."""
        if isinstance(value, bool) or not isinstance(value, int | float) or (least is not None and value < least):
            least_said = "" if least is None else f" of {least:g} or more"
            raise self.fail(f"`{key}` must be a number{least_said}, not {value!r}.", key)
        return float(value)

    def children(self, key: str, what: str) -> list[Entry]:
        """The mappings in the list below a key; none if the key is absent. Raises RuleError."""
        node = self.nodes.get(key)
        if node is None or node.value == "":
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(f"`{key}` must be a list: {what}.", key)
        return [as_mapping(self.path, child, what, child.start_mark.line + 1) for child in node.value]


def read(path: Path, what: str) -> Entry | None:
    """The mapping in a file; None if it is empty. what: the expected content, for messages. Raises RuleError."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RuleError(f"{path}:{line}: not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise RuleError(f"{path}: not valid YAML: {error}.") from error
    return None if root is None else as_mapping(path, root, what)


def as_mapping(path: Path, node: yaml.Node, what: str, line: int = 1) -> Entry:
    """A node as a mapping. Raises RuleError."""
    if not isinstance(node, yaml.MappingNode):
        raise RuleError(f"{path}:{line}: {what}.")
    loader = yaml.SafeLoader("")
    nodes = {str(k.value): v for k, v in node.value}
    values = {name: loader.construct_object(v, deep=True) for name, v in nodes.items()}
    return Entry(path, values, {str(k.value): k.start_mark.line + 1 for k, _ in node.value}, line, nodes)
