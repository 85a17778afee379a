"""The page in a real browser. Runs where Chromium and its driver are: apt-get install chromium chromium-driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qrag_retriever import ChunkIndex, MultiStepSelector, QRAGModel, Selection
from tests.conftest import QUESTION, STORY
from tests.long_document import NUM_CHUNKS, long_index
from tests.test_hops_page import HOSTILE

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("no Chromium with its driver", allow_module_level=True)

# Two frames after the event the picture is on the screen.
TIME_A_KEY = """
const [key, done] = arguments;
const start = performance.now();
document.getElementById("map").dispatchEvent(new KeyboardEvent("keydown", { key }));
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
"""
# How many pixels of a strip have the colour of the picks.
COUNT_PICK_PIXELS = """
const canvas = document.querySelector("#map canvas");
const colour = getComputedStyle(document.documentElement).getPropertyValue("--pick").trim();
const wanted = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
let found = 0;
for (let at = 0; at < pixels.length; at += 4) {
  if (wanted.every((part, index) => Math.abs(pixels[at + index] - part) < 3)) found++;
}
return found;
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


def opened(browser: Any, selection: Selection, folder: Path) -> Any:
    """Open a page and wait for its first picture; returns the map."""
    browser.get(selection.to_html(folder / "hops.html").as_uri())
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return browser.find_element("id", "map")


def visible(element: Any) -> tuple[int, int]:
    return int(element.get_attribute("data-from")), int(element.get_attribute("data-to"))


def check_quiet(browser: Any) -> None:
    """Nothing was complained about, nothing was loaded."""
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def story(model: QRAGModel) -> Selection:
    index = ChunkIndex.from_texts(STORY * 10, ids=[str(i) for i in range(120)], model=model)
    return MultiStepSelector(index, k=3).select(QUESTION)


def test_keyboard_and_buttons_move_the_map(browser: Any, story: Selection, tmp_path: Path) -> None:
    element = opened(browser, story, tmp_path)
    assert visible(element) == (0, 120)
    element.send_keys("+")
    assert visible(element) == (23, 98)
    element.send_keys("\ue014")  # right
    assert visible(element) == (34, 109)
    element.send_keys("2")
    first, last = visible(element)
    assert first <= story.steps[1].chunk_id < last
    element.send_keys("\ue010")  # end
    assert visible(element)[1] == 120
    for _ in range(20):
        element.send_keys("+")
    assert visible(element)[1] - visible(element)[0] == 8
    element.send_keys("0")
    assert visible(element) == (0, 120)
    browser.find_element("css selector", "button[aria-label='Zoom in']").click()
    assert visible(element) == (23, 98)
    assert browser.find_element("id", "map-status").text.startswith("Chunks 22 to 97")
    browser.find_element("css selector", "#hop-3 .go").click()
    assert browser.switch_to.active_element == element
    check_quiet(browser)


def test_mouse_drags_and_zooms(browser: Any, story: Selection, tmp_path: Path) -> None:
    element = opened(browser, story, tmp_path)
    mouse = webdriver.ActionChains(browser)
    mouse.double_click(element).perform()
    first, last = visible(element)
    assert last - first == 75
    mouse.drag_and_drop_by_offset(element, 200, 0).perform()
    assert visible(element)[0] < first
    mouse.move_to_element(element).perform()
    assert "hop 1: " in browser.find_element("id", "map-status").text
    check_quiet(browser)


def test_the_map_is_reached_by_tabulator(browser: Any, story: Selection, tmp_path: Path) -> None:
    opened(browser, story, tmp_path)
    reached = []
    for _ in range(12):
        webdriver.ActionChains(browser).send_keys("\ue004").perform()
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("aria-label") or active.text)
    assert reached[:3] == ["Skip to what was picked", "Zoom out", "Zoom in"]
    assert "map" in reached


def test_picks_are_on_the_picture(browser: Any, model: QRAGModel, tmp_path: Path) -> None:
    opened(browser, MultiStepSelector(long_index(model), k=4).select(QUESTION), tmp_path)
    # Four dots of 70 pixels, four lines and labels.
    assert browser.execute_script(COUNT_PICK_PIXELS) > 4 * 60
    check_quiet(browser)


def test_400_000_chunks_respond(browser: Any, model: QRAGModel, tmp_path: Path) -> None:
    element = opened(browser, MultiStepSelector(long_index(model), k=10).select(QUESTION), tmp_path)
    assert visible(element) == (0, NUM_CHUNKS)
    milliseconds = [browser.execute_async_script(TIME_A_KEY, key) for key in "+-" * 5 + "+" * 20]
    # Includes two frames of 17 ms.
    assert sorted(milliseconds)[len(milliseconds) // 2] < 300
    assert visible(element)[1] - visible(element)[0] < 100
    check_quiet(browser)


def test_hostile_text_does_nothing(browser: Any, model: QRAGModel, tmp_path: Path) -> None:
    metadatas = [{text: text} for text in HOSTILE]
    index = ChunkIndex.from_texts(HOSTILE, metadatas, ids=list(HOSTILE), model=model)
    opened(browser, MultiStepSelector(index, k=4).select(" ".join(HOSTILE)), tmp_path)
    assert browser.execute_script("return window.taken") is None
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    check_quiet(browser)


def test_print_shows_still_pictures(browser: Any, story: Selection, tmp_path: Path) -> None:
    element = opened(browser, story, tmp_path)
    still = browser.find_element("class name", "still")
    assert (element.is_displayed(), still.is_displayed()) == (True, False)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert (element.is_displayed(), still.is_displayed()) == (False, True)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_dark_and_narrow(browser: Any, story: Selection, tmp_path: Path) -> None:
    opened(browser, story, tmp_path)
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(ground)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert browser.execute_script(ground) != light
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 340, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    )
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    check_quiet(browser)


def test_without_scripts_the_picture_is_still(browser: Any, story: Selection, tmp_path: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(story.to_html(tmp_path / "hops.html").as_uri())
    shown = [browser.find_element(*by).is_displayed() for by in (("class name", "still"), ("id", "map"))]
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert shown == [True, False]
