"""The page of an archive in a real browser."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archive.places import rectangle
from archive.searcher import Searcher
from data.images import decode
from tests import ROOT
from tests.archive.pages import HOSTILE, MANY, MIB, row_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def served(many: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a person starts it, and the address that it prints."""
    command = [sys.executable, "search.py", "serve", str(many), "--port", "0", "--device", "cpu", "--max-upload", "1"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield process, line.partition(" at ")[2].split(" ")[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


class Visit:
    """A tab of the browser at the page, whose faults are collected."""

    def __init__(self, browser: Any, url: str, width: int = 1280, **settings: Any) -> None:
        self.url = url
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, **settings)
        self.faults: list[str] = []
        self.tab.on("pageerror", lambda fault: self.faults.append(str(fault)))
        self.tab.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.tab.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)

    def go(self, path: str) -> Visit:
        self.tab.goto(self.url + path)
        # The page is ready when it says something: empty, its script has not run yet.
        return self.until("#status:not(:empty):not(:text('Searching')), #error:not([hidden])")

    def until(self, selector: str) -> Visit:
        self.tab.wait_for_selector(selector, state="attached")
        return self

    def complaints(self) -> list[str]:
        """Faults, but for images that are gone and requests that were refused."""
        return [fault for fault in self.faults if "404" not in fault and "400" not in fault]

    def shown(self) -> list[tuple[str, str, str]]:
        """Rank, score and name of each image."""
        parts = [self.tab.locator(f".card .{part}").all_text_contents() for part in ("rank", "score", "name")]
        return list(zip(*parts, strict=True))


def expected_cards(hits: Sequence[Any], first: int = 1) -> list[tuple[str, str, str]]:
    return [(str(rank), f"{hit.score:.4f}", hit.name) for rank, hit in enumerate(hits, start=first)]


def contrast(first: str, second: str) -> float:
    """The contrast of two colours, as the browser writes them ("rgb(1, 2, 3)"), by WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    darker, lighter = sorted(map(luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


class TestBrowser:
    @pytest.fixture
    def visit(self, browser: Any, served: tuple[subprocess.Popen[str], str]) -> Iterator[Visit]:
        visit = Visit(browser, served[1])
        yield visit
        visit.tab.close()

    def test_an_address_is_a_search(self, visit: Visit, searcher: Searcher) -> None:
        visit.go("/?q=a+red+field").until(".card")
        found = searcher.text("a red field", 30)
        assert visit.shown() == expected_cards(found[:24])
        status = visit.tab.inner_text("#status")
        assert status.startswith("1 to 24 of 30 images, encoded in ")
        assert visit.tab.inner_text("#about") == "30 images · GaLR · exact search"
        visit.tab.click("#next")
        visit.until("#place:text('Page 2 of 2')")
        assert visit.shown() == expected_cards(found[24:], 25)
        assert visit.tab.url == f"{visit.url}/?q=a+red+field&page=2"
        assert visit.tab.is_disabled("#next")
        visit.tab.reload()
        visit.until("#place:text('Page 2 of 2')")
        visit.tab.click("#previous")
        visit.until("#place:text('Page 1 of 2')")
        visit.tab.go_back()
        visit.until("#place:text('Page 2 of 2')")
        least = (found[9].score + found[10].score) / 2
        visit.tab.fill("#least", str(least))
        visit.tab.press("#least", "Enter")
        visit.until("#status:text('1 to 10 of 10 images')")
        assert visit.shown() == expected_cards(found[:10])
        assert visit.tab.url == f"{visit.url}/?q=a+red+field&least={least}"
        before = visit.tab.evaluate("history.length")
        for _ in range(5):
            visit.tab.press("#query", "Enter")
        visit.until("#status:text('1 to 10 of 10 images')")
        assert visit.tab.evaluate("history.length") == before
        assert visit.complaints() == []

    def test_scenes_words_and_hostile_names(self, visit: Visit, searcher: Searcher) -> None:
        visit.go("/")
        choices = ["all", "<img src=x onerror=alert(1)> (1)", "north (19)", "south (10)"]
        assert visit.tab.locator("#scene option").all_text_contents() == choices
        visit.tab.type("#query", "a Re")
        visit.until("#completions option")
        assert visit.tab.eval_on_selector_all("#completions option", "all => all.map(one => one.value)") == ["a red"]
        visit.tab.fill("#query", "a red zeppelin")
        visit.tab.press("#query", "Enter")
        visit.until(".card .rank")
        assert visit.tab.inner_text("#note") == "The model does not know: zeppelin."
        visit.tab.select_option("#scene", "south")
        visit.until("#status:text('of 10 images')")
        keep = np.array([name.startswith("south/") for name in searcher.index.names()])
        assert visit.shown() == expected_cards(searcher.text("a red zeppelin", 24, 0, keep))
        assert visit.tab.url == f"{visit.url}/?q=a+red+zeppelin&scene=south"
        assert visit.tab.is_hidden("#pager")
        visit.go("/?q=zeppelin").until("#error:text('knows no word')")
        assert visit.shown() == []
        visit.tab.fill("#query", "red " * 300)
        visit.tab.press("#query", "Enter")
        visit.until("#error:text('This sentence has 1,199 characters, at most 1,000 characters are taken.')")
        names = []
        for number in (1, 2):
            visit.go(f"/?q=a+blue+pond&page={number}").until(f"#place:text('Page {number}')")
            names += [name for _, _, name in visit.shown()]
        assert HOSTILE in names
        visit.go(f"/?q={'%3Cimg src=x onerror=alert(2)%3E red'}").until("#note:text('img')")
        assert visit.complaints() == []

    def test_uploads(self, visit: Visit, searcher: Searcher, tmp_path: Path) -> None:
        asked = searcher.images / "north/last.tif"
        visit.go("/")
        visit.tab.set_input_files("#image", asked)
        visit.until("#preview:not([hidden])")
        image = decode(asked)
        assert visit.shown() == expected_cards(searcher.image(image, 24))
        assert visit.tab.inner_text("#asked-name") == "last.tif"
        visit.tab.click("#next")
        visit.until("#place:text('Page 2')")
        assert visit.shown() == expected_cards(searcher.image(image, 6, 24), 25)
        (tmp_path / "notes.jpg").write_text("no image")
        visit.tab.set_input_files("#image", tmp_path / "notes.jpg")
        visit.until("#error:text(\"'notes.jpg': not an image\")")
        assert visit.shown() == []
        (tmp_path / "big.jpg").write_bytes(bytes(2 * MIB))
        visit.tab.set_input_files("#image", tmp_path / "big.jpg")
        visit.until("#error:text('big.jpg has 2.0 MiB, at most 1 MiB are taken.')")
        encoded = base64.b64encode(asked.read_bytes()).decode()
        dropped = visit.tab.evaluate_handle(
            """(encoded) => {
              const transfer = new DataTransfer();
              const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
              transfer.items.add(new File([bytes], "dropped.tif"));
              return transfer;
            }""",
            encoded,
        )
        visit.tab.dispatch_event("main", "drop", {"dataTransfer": dropped})
        visit.until("#asked-name:text('dropped.tif')").until(".card")
        assert visit.shown() == expected_cards(searcher.image(image, 24))
        visit.tab.click("#forget")
        visit.until("#asked[hidden]").until("#start:not([hidden])")
        assert visit.complaints() == []

    def test_the_viewer(self, visit: Visit, searcher: Searcher) -> None:
        """Back, Escape and its backdrop close it, and each leaves page, history and keyboard where they were."""
        visit.go("/").go("/?q=a+red+field").until(".card")
        found = [hit for hit in searcher.text("a red field", 24) if hit.name != "north/1.png"]
        places = [card for card in visit.shown() if card[2] != "north/1.png"]
        tab, page = visit.tab, visit.tab.url
        number = places[1][0]

        def opened(place: int) -> None:
            hit = found[place]
            visit.until(f"#viewer[open] #whole-name:text-is('{hit.name}')")
            tab.wait_for_function("() => document.getElementById('whole').naturalWidth === 96")
            assert f"score {hit.score:.4f}" in tab.inner_text("#whole-facts")
            assert hit.name.partition("/")[0] in tab.inner_text("#whole-facts")

        def closed(place: int) -> None:
            visit.until("#viewer:not([open])")
            tab.wait_for_function("name => document.activeElement?.textContent.includes(name)", arg=found[place].name)
            assert tab.url == page
            assert visit.shown()[0][2] in (found[0].name, "north/1.png")

        card = tab.locator(".open", has_text=found[1].name).first
        card.click()
        opened(1)
        assert tab.evaluate("document.activeElement.id") == "close"
        tab.keyboard.press("ArrowRight")
        opened(2)
        tab.go_back()
        closed(2)
        card.click()
        opened(1)
        tab.keyboard.press("ArrowLeft")
        opened(0)
        tab.keyboard.press("Escape")
        closed(0)
        card.click()
        opened(1)
        wide = tab.evaluate("document.getElementById('whole').width")
        tab.click("#smaller")
        assert tab.evaluate("document.getElementById('whole').width") == pytest.approx(wide / 1.5, abs=1)
        tab.keyboard.press("0")
        assert tab.evaluate("document.getElementById('whole').width") == wide
        tab.mouse.click(5, 5)
        closed(1)
        tab.go_forward()
        opened(1)
        assert number in tab.inner_text("#whole-facts")
        tab.click("#whole-similar")
        visit.until(f"#asked-name:text('{found[1].name}')").until("#viewer:not([open])")
        row = row_of(searcher, found[1].name)
        assert visit.shown() == expected_cards(searcher.similar(row, 24).hits)
        assert f"/?row={row}&index=" in tab.url
        tab.reload()
        visit.until(f"#asked-name:text('{found[1].name}')")
        third = visit.shown()[3][2]
        tab.locator(".similar").nth(3).click()
        visit.until(f"#asked-name:text-is('{third}')")
        tab.go_back()
        visit.until(f"#asked-name:text-is('{found[1].name}')")
        tab.go_back()
        opened(1)  # as it was left
        tab.go_back()
        closed(1)
        tab.go_back()
        visit.until("#start:not([hidden])")
        assert visit.complaints() == []

    def test_the_start_and_what_can_be_taken_away(self, visit: Visit, searcher: Searcher, tmp_path: Path) -> None:
        visit.go("/").until("#start:not([hidden])").until(".card")
        first = visit.tab.locator(".card .name").all_text_contents()
        assert set(first) < set(searcher.index.names())
        assert len(set(first)) == 24
        visit.tab.click("#others")
        names = "[...document.querySelectorAll('.card .name')].map(name => name.textContent)"
        visit.tab.wait_for_function(f"shown => {names}.some((name, place) => name !== shown[place])", arg=first)

        def saved(button: str) -> Path:
            with visit.tab.expect_download() as download:
                visit.tab.click(button)
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            return path

        visit.go("/?q=%3Da+red+field").until(".rank")
        found = searcher.text("=a red field", 30)
        with saved("#list").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows] == [hit.name for hit in found]
        assert {row["query"] for row in rows} == {"'=a red field"}  # no formula
        assert [float(row["score"]) for row in rows] == pytest.approx([hit.score for hit in found])
        chosen = [hit for hit in found if hit.name != "north/1.png"][3:5]
        for hit in chosen:
            visit.tab.locator(".card", has_text=hit.name).get_by_role("checkbox").first.check()
        assert visit.tab.inner_text("#selected") == "2 images selected"
        visit.tab.select_option("#list-as", "json")
        listed = json.loads(saved("#list").read_text())
        assert [(row["query"], row["name"], row["scene"]) for row in listed] == [
            ("=a red field", hit.name, hit.name.partition("/")[0]) for hit in chosen
        ]
        with zipfile.ZipFile(saved("#zip")) as archive:
            assert sorted(archive.namelist()) == sorted(hit.name for hit in chosen)
            for hit in chosen:
                assert archive.read(hit.name) == (searcher.images / hit.name).read_bytes()
        selection = "import('/static/selection.js').then((one) => one"
        earlier = "{ image: 'image/3?index=earlier', row: 3, name: 'x', bounds: null }"
        visit.tab.evaluate(f"{selection}.select({earlier}, true))")
        visit.tab.click("#zip")  # row 3 is another image by now
        visit.until("#error:text('The index has changed since some of these images were selected')")
        visit.tab.click("#select-none")
        visit.tab.evaluate(f"{selection}.setPage('red', [], 2000, () => null))")
        assert visit.tab.text_content("#list") == "Save list of the best 1,000 images"
        assert visit.tab.is_disabled("#zip")
        assert visit.tab.locator(".card :checked").count() == 0
        assert visit.complaints() == []

    def test_a_map(self, visit: Visit, searcher: Searcher, tmp_path: Path) -> None:
        asked: list[str] = []
        visit.tab.on("request", lambda request: asked.append(request.url))
        visit.go("/?q=red&scene=south").until(".rank")
        assert visit.tab.is_hidden("#map-toggle")
        row = row_of(searcher, "north/last.tif")
        visit.go(f"/?row={row}&index={visit.tab.evaluate('fetch(`api/about`).then((one) => one.json())')['index']}")
        visit.until(".rank").tab.click("#map-toggle")
        visit.until("#map .leaflet-image-layer").until("#map path.mark")
        assert visit.tab.locator("#map .leaflet-image-layer").count() == 1
        box = visit.tab.locator("#map .leaflet-image-layer").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(96 / 64 * np.cos(np.radians(39.968)), rel=0.02)
        with visit.tab.expect_download() as download:
            visit.tab.select_option("#list-as", "geojson")
            visit.tab.click("#list")
        download.value.save_as(tmp_path / "list.geojson")
        features = json.loads((tmp_path / "list.geojson").read_text())["features"]
        assert len(features) == MANY
        assert features[0]["properties"]["name"] == "north/last.tif"
        (ring,) = features[0]["geometry"]["coordinates"]
        assert np.ravel(ring) == pytest.approx([15, 39.936, 15.096, 39.936, 15.096, 40, 15, 40, 15, 39.936])
        assert features[1]["geometry"] is None
        for bounds in ((1.0, 2.0, 3.0, 4.0), (179.0, 2.0, -178.0, 4.0)):
            drawn = "(bounds) => import('/static/selection.js').then((one) => one.geometry({ bounds }))"
            assert visit.tab.evaluate(drawn, bounds) == json.loads(json.dumps(rectangle(bounds)))
        visit.tab.locator("#map path.mark").last.click()
        visit.until("#viewer[open] #whole-name:text-is('north/last.tif')")
        assert {one for one in asked if not one.startswith((visit.url, "blob:", "data:"))} == set()
        assert visit.complaints() == []

    def test_a_narrow_window_and_an_image_that_is_gone(
        self, browser: Any, served: tuple[subprocess.Popen[str], str], searcher: Searcher
    ) -> None:
        visit = Visit(browser, served[1], width=390, has_touch=True, is_mobile=True)
        place = [hit.name for hit in searcher.text("red", 30)].index("north/1.png")
        visit.go(f"/?q=red&page={place // 24 + 1}").until(".gone")
        gone = visit.tab.locator(".card", has=visit.tab.locator(".gone"))
        assert gone.locator(".name").all_text_contents() == ["north/1.png"]
        assert visit.tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert not visit.tab.is_visible(".hint")  # nothing can be dropped here
        visit.go("/").until(".card")
        assert visit.tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        visit.tab.close()

    def test_everybody_can_use_it(self, visit: Visit) -> None:
        """What axe finds against WCAG 2.2, A and AA; and the borders of fields, which it does not look at."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

        def judge(part: str, rules: Sequence[str] = levels) -> None:
            found = axe.run(visit.tab, part, {"runOnly": list(rules)}).response
            assert [f"{one['id']}: {one['nodes'][0]['html']}" for one in found["violations"]] == []
            assert found["passes"]

        def bordered() -> None:
            colours = visit.tab.eval_on_selector_all(
                "input:not(.hidden, [type=checkbox]), select, button",
                """all => all.filter((one) => one.checkVisibility() && !one.disabled && one.id !== "go").map((one) => {
                    const { borderTopColor, backgroundColor } = getComputedStyle(one);
                    return [one.id, borderTopColor, backgroundColor, getComputedStyle(document.body).backgroundColor];
                })""",
            )
            assert {"query", "scene", "least", "choose"} <= {name for name, *_ in colours}
            for name, border, inside, outside in colours:
                assert min(contrast(border, inside), contrast(border, outside)) >= 3, name

        visit.tab.emulate_media(color_scheme="light")
        visit.go("/").until(".card")
        judge("#start")
        visit.go("/?q=a+red+zeppelin").until(".card")
        visit.tab.evaluate("document.querySelectorAll('.card:nth-child(n + 4)').forEach((one) => one.remove())")
        judge("body")
        bordered()
        assert visit.tab.locator(".card img").first.get_attribute("alt") == ""  # its name is beside it
        visit.tab.locator("a.open").first.click()
        visit.until("#viewer[open]")
        judge("#viewer")
        visit.tab.emulate_media(color_scheme="dark")
        judge("#viewer", ["color-contrast"])
        visit.tab.keyboard.press("Escape")
        visit.until("#viewer:not([open])")
        judge("body", ["color-contrast"])
        bordered()

    def test_sigterm_ends_the_command(self, served: tuple[subprocess.Popen[str], str]) -> None:
        process, _ = served
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == "Ended.\n"
        assert "Traceback" not in err
