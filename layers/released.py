"""Checkpoints that the models' authors published, read into our modules.

Each model names its released parameters in `released_names`: a prefix and what replaces it, or None for a parameter
that is stored but never reaches the output. The longest prefix that fits wins. `RetrievalModel.fit_released` reshapes
what is stored in another form.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from layers.base import RetrievalModel
from utils import InputError

SHOWN = 5


def load_released(model: RetrievalModel, state_dict: Mapping[str, Tensor]) -> None:
    """Load a released state dict into one of our models.

    Args:
        model: a registered model, built with the options and the vocabulary of the checkpoint.
        state_dict: names as released, with or without `module.` before them.

    Raises:
        InputError: names or shapes don't fit; the model is left as it was.
    """
    given = model.fit_released(translate(model.released_names, state_dict))
    load_fitting(
        model,
        given,
        "the released checkpoint",
        "A different embedding shape means another vocabulary; other names mean another model or att_type.",
    )


def load_fitting(module: nn.Module, given: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Load weights that must have exactly the names and shapes of a module.

    Args:
        module: what they go into.
        given: the weights, under our names.
        source: where they come from, in words, for the message.
        advice: what a misfit can mean, a sentence.

    Raises:
        InputError: names or shapes don't fit; the module is left as it was.
    """
    wanted = module.state_dict()
    kind = type(module).__name__
    faults = [f"missing: {name}" for name in wanted if name not in given]
    faults += [f"not known to {kind}: {name}" for name in given if name not in wanted]
    faults += [
        f"{name}: {list(value.shape)} in the checkpoint, {list(wanted[name].shape)} in the model"
        for name, value in given.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        shown = "\n  ".join(faults[:SHOWN])
        raise InputError(f"{source} does not fit {kind} as built from these options:\n  {shown}{more}\n{advice}")
    module.load_state_dict(given)


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
