"""The keys of a typed block: their dotted names, and what each may hold, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from option.parameters import Parameters

_TYPES = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path", type(None): "null"}
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}


def leaves(block: type[BaseModel], prefix: str) -> dict[str, FieldInfo]:
    """Every key below a block that holds a value, by dotted name; `prefix` is the block's own."""
    found: dict[str, FieldInfo] = {}
    block = block.whole() if issubclass(block, Parameters) else block
    for name, field in block.model_fields.items():
        dotted = f"{prefix}.{field.alias or name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= leaves(kind, dotted)
        else:
            found[dotted] = field
    return found


def allowed(field: FieldInfo) -> str:
    """What a key may hold, in words: "an integer, at least 1", "one of off, bf16, fp16"."""
    return _allowed(field.annotation, field.metadata)


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words a key may hold; empty where any value of its type will do."""
    kind = field.annotation
    if get_origin(kind) is dict:
        kind = get_args(kind)[0]
    return tuple(str(word) for word in get_args(kind)) if get_origin(kind) is Literal else ()


def _allowed(kind: Any, constraints: Sequence[Any]) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _allowed(inner[0], inner[1:])
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is list and get_origin(inner[0]) is Literal:
        return f"a list of {', '.join(map(str, get_args(inner[0])))}"
    if origin is dict and inner[0] is str:
        return f"names, each with {_allowed(inner[1], ())}"
    if origin is dict:
        return f"{_allowed(inner[0], ())}; or several of them with {_allowed(inner[1], ())}, each"
    if origin in (Union, UnionType):
        return " or ".join(_allowed(member, constraints if member is not type(None) else ()) for member in inner)
    if origin is tuple and isinstance(inner[0], type) and issubclass(inner[0], BaseModel):
        return f"a list, each {_allowed(inner[0], ())}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a block of keys: " + ", ".join(kind.model_fields)
    words = _TYPES.get(kind) or ("a list" if origin in (list, tuple) else str(kind))
    limits = [
        f"{phrase} {getattr(constraint, name)}"
        for constraint in constraints
        for name, phrase in _LIMITS.items()
        if getattr(constraint, name, None) is not None
    ]
    return ", ".join([words, *limits])
