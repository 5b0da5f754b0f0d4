"""Checkpoints that the models' authors published, read into our modules.

Each model names its released parameters in `released_names`: a prefix and what replaces it, or None for a parameter
that is stored but never reaches the output. The longest prefix that fits wins. `RetrievalModel.fit_released` reshapes
what is stored in another form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from layers.base import RetrievalModel
from utils import Gate, InputError, refuse

SHOWN = 3


def load_released(model: RetrievalModel, state_dict: Mapping[str, Tensor], gate: Gate | None = None) -> None:
    """Load a released state dict into one of our models.

    Args:
        model: a registered model, built with the options and the vocabulary of the checkpoint.
        state_dict: names as released, with or without `module.` before them.
        gate: see `load_fitting`.

    Raises:
        InputError: names or shapes don't fit; the model is left as it was.
    """
    given = model.fit_released(translate(model.released_names, state_dict))
    load_fitting(
        model,
        given,
        "the released checkpoint",
        "A different embedding shape means another vocabulary; other names mean another model or att_type.",
        gate,
    )


def load_fitting(
    module: nn.Module, given: Mapping[str, Tensor], source: str, advice: str, gate: Gate | None = None
) -> None:
    """Load weights that must have exactly the names and shapes of a module.

    Args:
        module: what they go into.
        given: the weights, under our names.
        source: where they come from, in words, for the message.
        advice: what a misfit can mean, a sentence.
        gate: where the user insists, what fits is loaded and the rest stays as it is; None: nobody can.

    Raises:
        InputError: names or shapes don't fit, or forced, nothing does; the module is left as it was.
    """
    wanted = module.state_dict()
    untouched, table = misfits(wanted, given)
    if table:
        kind = type(module).__name__
        misfit = f"{source} does not fit {kind} as built from these options"
        if untouched == len(wanted):
            raise InputError(f"{misfit}, not in one tensor:{table}\n{advice}")
        share = f" ({untouched} of {len(wanted)} tensors would not come from it)" if untouched else ""
        refuse(gate, f"{misfit}{share}:{table}", advice)
    module.load_state_dict({name: given[name] for name in wanted if _fits(given.get(name), wanted[name])}, strict=False)


def _fits(value: Tensor | None, wanted: Tensor) -> bool:
    return value is not None and value.shape == wanted.shape


def translate(names: Mapping[str, str | None], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a released state dict by its longest fitting prefixes; dead parameters are left out."""
    prefixes = sorted(names, key=len, reverse=True)
    renamed = {}
    for released_name, value in state_dict.items():
        name = released_name.removeprefix("module.")
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        replacement = "" if prefix is None else names[prefix]
        if replacement is not None:
            renamed[replacement + name.removeprefix(prefix or "")] = value
    return renamed


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[int, str]:
    """How weights differ from those of a model in names and shapes.

    Args:
        wanted: the model's own.
        given: what is to go into it.

    Returns:
        How many tensors of the model can't be taken over, and a table with the number and the first names of each
        kind of misfit, "" where there is none.
    """
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    reshaped = [name for name, value in given.items() if name in wanted and value.shape != wanted[name].shape]
    shapes = [
        f"{name}: {list(given[name].shape)} in the checkpoint, {list(wanted[name].shape)} in the model"
        for name in reshaped
    ]
    kinds = {"missing": missing, "unexpected": unknown, "another shape": shapes}
    rows = [f"\n  {kind:<14}{len(names):>5}  {_first(names)}" for kind, names in kinds.items() if names]
    return len(missing) + len(reshaped), "".join(rows)


def _first(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
