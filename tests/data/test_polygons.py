"""Annotated places: what is written is read back, and every fault of an `anno.json` has its place in the message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.polygons import Place, read_places, refuse_outside, write_places
from utils import InputError

TRIANGLE = [[1, 2], [30.5, 2], [10, 20]]
GOOD = {"jpg_name": "a/1.tif", "caption": "a red roof .\n", "points": [TRIANGLE], "more": 1}


def written(folder: Path, content: object) -> Path:
    path = folder / "anno.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_published_form_is_read(tmp_path: Path) -> None:
    (place,) = read_places(written(tmp_path, [GOOD]))
    assert (place.image, place.caption) == ("a/1.tif", "a red roof .")
    np.testing.assert_array_equal(place.polygons[0], np.array(TRIANGLE))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    places = [Place("x.jpg", "ein großes Dach", (np.array(TRIANGLE), np.array(TRIANGLE) + 0.25))] * 2
    write_places(tmp_path / "anno.json", places)
    read = read_places(tmp_path / "anno.json")
    assert [(place.image, place.caption) for place in read] == [("x.jpg", "ein großes Dach")] * 2
    for place in read:
        for found, expected in zip(place.polygons, places[0].polygons, strict=True):
            np.testing.assert_array_equal(found, expected)


def changed(**values: object) -> list[dict[str, object]]:
    return [GOOD, {**GOOD, **values}]


def without(key: str) -> list[dict[str, object]]:
    return [GOOD, {name: value for name, value in GOOD.items() if name != key}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file: Invalid JSON"),
        ("[" * 100_000, "the file: Invalid JSON"),
        ("{}", "the file: Input should be a valid"),
        ([], "it holds no entry"),
        ([3], "0: Input should be"),
        (without("points"), r"1\.points: Field required"),
        (without("caption"), r"1\.caption: Field required"),
        (without("jpg_name"), r"1\.jpg_name: Field required"),
        (changed(jpg_name=5), r"1\.jpg_name: Input should be a valid string"),
        (changed(jpg_name="../../secret.jpg"), r"1\.jpg_name: '\.\./\.\./secret\.jpg' leaves the image folder"),
        (changed(jpg_name="/etc/passwd"), r"1\.jpg_name: '/etc/passwd' leaves the image folder"),
        (changed(jpg_name=""), r"1\.jpg_name: blank file name"),
        (changed(caption=""), r"1\.caption: String should have at least 1"),
        (changed(points=[]), r"1\.points: List should have at least 1"),
        (changed(points=[TRIANGLE, TRIANGLE[:2]]), r"1\.points\.1: List should have at least 3"),
        (changed(points=[[[1, 2], [3], [4, 5]]]), r"1\.points\.0\.1"),
        (changed(points=[[[1, 2], [3, "4"], [4, 5]]]), r"1\.points\.0\.1\.1: Input should be a valid number"),
        (changed(points=[[[1, 2], [3, True], [4, 5]]]), r"1\.points\.0\.1\.1"),
        ('[{"jpg_name": "a", "caption": "b", "points": [[[1, 2], [3, NaN], [4, 5]]]}]', r"0\.points\.0\.1\.1"),
        (changed(points=[[[1, 2]] * 4]), r"1\.points\.0: all its points are the same"),
    ],
    ids=range(20),
)
def test_a_fault_has_its_place(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"(?s)anno\.json: .*{message}.*Expected a list of"):
        read_places(written(tmp_path, content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: can't be read"):
        read_places(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("jpg_name"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["jpg_name", "caption", "points"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON | st.lists(st.fixed_dictionaries({"jpg_name": st.text(), "caption": st.text(), "points": JSON})))
def test_nothing_but_places_or_a_message_comes_of_any_json(content: Any, tmp_path: Path) -> None:
    try:
        places = read_places(written(tmp_path, content))
    except InputError:
        return
    assert all(np.isfinite(polygon).all() for place in places for polygon in place.polygons)


def test_points_outside_of_the_image_are_named() -> None:
    inside = Place("1.tif", "a", (np.array([(0.0, 0.0), (40.0, 0.0), (40.0, 30.0)]),))
    outside = Place("1.tif", "b", (*inside.polygons, np.array([(0, 0), (40.5, 0), (5, 31), (3, -1)], dtype=float)))
    refuse_outside(Path("anno.json"), [inside], [7], 40, 30)
    with pytest.raises(InputError) as caught:
        refuse_outside(Path("anno.json"), [inside, outside], [7, 9], 40, 30)
    message = str(caught.value)
    assert "anno.json: 3 faults" in message
    for part in ("9.points.1.1: [40.5, 0.0]", "9.points.1.2: [5.0, 31.0]", "9.points.1.3: [3.0, -1.0]", "40 x 30"):
        assert part in message
