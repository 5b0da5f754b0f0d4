"""The sentences that stand for a scene class."""

from __future__ import annotations

import re

TEMPLATES = ("{}", "an aerial image of {}", "a satellite image of {}", "there is {} in the image")
"""Chosen before any was tried, and none was changed afterwards."""
PHRASES = {
    "agricultural": "farmland",
    "airplane": "an airplane",
    "baseballdiamond": "a baseball field",
    "beach": "a beach",
    "buildings": "buildings",
    "chaparral": "chaparral",
    "denseresidential": "a dense residential area",
    "forest": "a forest",
    "freeway": "a freeway",
    "golfcourse": "a golf course",
    "harbor": "a harbor",
    "intersection": "an intersection",
    "mediumresidential": "a medium residential area",
    "mobilehomepark": "a mobile home park",
    "overpass": "an overpass",
    "parkinglot": "a parking lot",
    "river": "a river",
    "runway": "a runway",
    "sparseresidential": "a sparse residential area",
    "storagetanks": "storage tanks",
    "tenniscourt": "a tennis court",
}
"""The classes of UC Merced in words; the name of another class is taken apart at capitals and underscores."""


def prompts_of(name: str) -> list[str]:
    """The sentences that stand for a class."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower()
    return [template.format(PHRASES.get(name, words)) for template in TEMPLATES]
