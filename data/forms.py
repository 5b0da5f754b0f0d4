"""JSON files of a given form: read, or refused with the keys at which they have another one."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from data.lists import first_faults, read_content
from utils import InputError

Form = TypeVar("Form")


def read_form(path: Path, form: TypeAdapter[Form], what: str, advice: str) -> Form:
    """Read a JSON file of a form.

    Raises:
        InputError: the file can't be read or has another form; the message names the dotted keys, and says `what` the
            file is not and what to do.
    """
    content = read_content(path)
    try:
        return form.validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path}: not {what}:{form_faults(error)}\n{advice}") from error


def form_faults(error: ValidationError) -> str:
    """The first places at which a file has another form, each on a line, as `first_faults` shows them."""
    faults = error.errors()
    return first_faults([f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in faults])
