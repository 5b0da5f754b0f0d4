"""Reading YAML text as plain values, without guessing at types and without making objects."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from runtime.untrusted import read_bytes
from utils import InputError

DEEPEST_NESTING = 20
LONGEST_SHOWN = 60
MOST_BYTES = 2**20
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
BACKSLASHES = "In double quotes a backslash begins an escape: write a path with / or in single quotes"
NULLS = ("", "~", "null", "Null", "NULL")

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Composes nodes in which every scalar is text, to be read by the type of its key.

    Nothing is constructed from the nodes, so that no tag can make an object.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases and deep nesting, which let a small file grow without bound."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported: write the value", problem_mark=mark)
        if self.depth == DEEPEST_NESTING:
            problem = f"blocks are nested deeper than {DEEPEST_NESTING} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# without resolvers a scalar is text: YAML 1.1 would read `1e-4` as text, `off` as false, `010` as 8 and `1:30` as 90
_Loader.yaml_implicit_resolvers = {}


def read_file(path: Path) -> tuple[Tree, list[str]]:
    """The blocks of a YAML file, as nested dicts, lists, text and None, and the problems in it by line.

    Raises:
        InputError: the file can't be opened, is not YAML, is empty, or holds something other than keys.
    """
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8 text; save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        raise InputError(_unreadable(path, error)) from error
    try:
        tree, problems = parse(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds {shown(tree)} instead of keys"
        raise InputError(f"{path}: the file {found}; expected blocks of keys such as `dataset:`")
    return tree, problems


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file can't be opened, with the YAML files that could be meant."""
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or error
        return f"{path}: can't be read ({reason}); give the path of a YAML file"
    for folder in (path.parent, Path(__file__).parent):
        there = [os.path.relpath(file) for file in sorted(folder.glob("[!.]*.yaml"))]
        if there:
            return f"{path}: no such file; there are {', '.join(there)}"
    return f"{path}: no such file; give the path of a YAML file"


def parse(text: str) -> tuple[Any, list[str]]:
    """One YAML value as dict, list, text or None, and the problems in it by line.

    Raises:
        InputError: the text is not YAML; the message names line and column, but no file.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        hint = f". {BACKSLASHES}" if "escape" in problem else ""
        raise InputError(f"not valid YAML{where}: {problem}{hint}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"not valid YAML at line {line}: the character U+{error.character:04X} is not allowed"
        ) from error
    except (ValueError, OverflowError) as error:
        # the numbers in escapes (\U) and in % lines reach Python's own functions unchecked
        raise InputError(f"not valid YAML: a number in an escape or a % line is out of range ({error})") from error
    problems: list[str] = []
    return (None if node is None else _plain(node, problems)), problems


def _plain(node: yaml.Node, problems: list[str]) -> Any:
    """The value of a node; what options can't hold is named in `problems`."""
    line = node.start_mark.line + 1
    if node.tag not in PLAIN_TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        problems.append(f"line {line}: the tag {tag} is not allowed: write plain text, numbers, lists or blocks")
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, problems)
    if not isinstance(node, yaml.ScalarNode):
        return [_plain(item, problems) for item in node.value]
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in node.value):
        hint = f". {BACKSLASHES}" if node.style == '"' else ""
        problems.append(f"line {line}: {shown(node.value)} holds a line break or another control character{hint}")
    # "None" is what published files write for null
    return None if node.value == "None" or (node.style is None and node.value in NULLS) else node.value


def _plain_mapping(node: yaml.MappingNode, problems: list[str]) -> Tree:
    values: Tree = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line, key = key_node.start_mark.line + 1, key_node.value
        if not isinstance(key, str) or not key or not key.isprintable():
            problems.append(f"line {line}: a key must be a plain word")
        elif "." in key:
            problems.append(f"line {line}: the key {shown(key)} holds a dot: nest the blocks instead")
        elif key in values:
            problems.append(f"line {line}: the key {shown(key)} is given twice, first on line {lines[key]}")
        else:
            values[key], lines[key] = _plain(value_node, problems), line
    return values


def shown(value: Any) -> str:
    """A value for a message: quoted, on one line, shortened."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
