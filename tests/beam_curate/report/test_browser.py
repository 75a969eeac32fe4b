"""The report in a real browser: the sliders, the hidden pictures, the copy button, and how it looks."""

from __future__ import annotations

import itertools
import shlex
import time
from pathlib import Path

import pytest
from reports import kept
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from beam_curate import report

PHONE, DESK = 360, 1440


class Page:
    """A report, opened."""

    def __init__(self, driver, directory: Path, width: int = DESK, scheme: str = "light"):
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.prefer(scheme)
        driver.get((directory / "_report.html").absolute().as_uri())
        self.wait_for(lambda: self.run("return document.documentElement.dataset.drawn") == scheme)

    def prefer(self, scheme: str) -> None:
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait_for(self, condition) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "nothing happened for 20 seconds"
            time.sleep(0.02)

    def stops(self, name: str) -> list[float]:
        return self.run("return JSON.parse(document.getElementById('data').textContent).axes[arguments[0]].stops", name)

    def move(self, name: str, stop: int) -> None:
        """Puts a slider on a stop, as dragging it does, and waits until the page has answered."""
        script = """
            const slider = document.getElementById("slider-" + arguments[0]);
            slider.value = arguments[1];
            slider.dispatchEvent(new Event("input", {bubbles: true}));
        """
        self.run(script, name, stop)
        self.settle()

    def settle(self) -> None:
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    @property
    def kept(self) -> int:
        return int(self.find("#kept").text.replace(",", ""))

    @property
    def command(self) -> str:
        return self.find("#command").get_property("value")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def opened(driver, pictures):
    page = Page(driver, pictures.directory)
    yield page
    assert page.errors() == []


def test_at_first_the_count_is_what_the_run_wrote(opened, pictures):
    assert opened.kept == pictures.manifest["images"]["written"] > 0
    assert "--aesthetic_threshold=5 --nsfw_threshold=0.5" in opened.command


@pytest.mark.parametrize(("aesthetic", "nsfw"), [(0.0, 1.0), (0.3, 0.9), (0.55, 0.5), (0.9, 0.1), (1.0, 0.0)])
def test_the_sliders_move_the_count_to_what_the_data_says(opened, pictures, aesthetic, nsfw):
    chosen = {}
    for name, share in (("aesthetic", aesthetic), ("nsfw", nsfw)):
        stops = opened.stops(name)
        chosen[name] = stops[round(share * (len(stops) - 1))]
        opened.move(name, round(share * (len(stops) - 1)))
        assert float(opened.find(f"#value-{name}").text) == chosen[name]
        assert float(opened.find(f"#slider-{name}").get_attribute("aria-valuetext")) == chosen[name]
    assert opened.kept == kept(pictures, chosen["aesthetic"], chosen["nsfw"])
    flags = dict(word.split("=", 1) for word in shlex.split(opened.command) if "=" in word)
    assert float(flags["--aesthetic_threshold"]) == chosen["aesthetic"]
    assert float(flags["--nsfw_threshold"]) == chosen["nsfw"]
    opened.find("#reset").click()
    assert opened.kept == pictures.manifest["images"]["written"]


def test_the_plots_follow_the_sliders(opened):
    def line():
        return opened.find("#plot-aesthetic svg .layer_2_marks line").get_attribute("transform")

    def kept_bars():
        return len(opened.find_all("#plot-aesthetic svg .layer_1_marks path"))

    before, bars = line(), kept_bars()
    assert bars > 0
    opened.move("aesthetic", len(opened.stops("aesthetic")) - 1)
    opened.wait_for(lambda: line() != before and kept_bars() == 0)


def test_everything_works_with_the_keyboard_alone(opened, pictures):
    body = opened.find("body")
    focused = lambda: opened.driver.switch_to.active_element  # noqa: E731
    body.send_keys(Keys.TAB)
    assert focused().get_attribute("class") == "skip"
    focused().send_keys(Keys.ENTER)
    focused().send_keys(Keys.TAB)
    assert focused().get_attribute("id") == "slider-aesthetic"
    focused().send_keys(*[Keys.ARROW_LEFT] * 7)
    focused().send_keys(Keys.TAB)
    assert focused().get_attribute("id") == "slider-nsfw"
    focused().send_keys(*[Keys.ARROW_RIGHT] * 3)
    opened.settle()
    aesthetic, nsfw = opened.stops("aesthetic"), opened.stops("nsfw")
    assert opened.kept == kept(pictures, aesthetic[aesthetic.index(5) - 7], nsfw[nsfw.index(0.5) + 3])
    reached = []
    while "frame" not in reached[-1:]:
        focused().send_keys(Keys.TAB)
        reached.append(focused().get_attribute("id") or focused().get_attribute("class").split(" ")[0])
        assert len(reached) < 30
    assert reached[:3] == ["command", "copy", "reset"]
    outline = opened.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    focused().send_keys(Keys.SPACE)
    assert focused().get_attribute("aria-pressed") == "true"


def test_hidden_pictures_show_when_clicked_and_hide_again(opened):
    button = opened.find("button.blurred")

    def blur():
        return opened.run("return getComputedStyle(arguments[0].querySelector('img')).filter", button)

    assert blur() == "blur(22px)"
    assert button.get_attribute("aria-label").startswith("Hidden picture, aesthetic ")
    opened.run("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    assert blur() == "none"
    assert button.get_attribute("aria-label").startswith("Picture, aesthetic ")
    assert button.get_attribute("aria-label").endswith(": hide")
    button.click()
    assert blur() == "blur(22px)"
    assert button.get_attribute("aria-label").endswith(": show")


def test_the_copy_button_copies_the_command(opened):
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    opened.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    opened.move("aesthetic", 3)
    opened.find("#copy").click()
    opened.wait_for(lambda: opened.find("#copied").text == "Copied")
    assert opened.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == opened.command


def test_where_there_is_no_clipboard_the_copy_button_still_copies(opened):
    opened.run("""
        Object.defineProperty(navigator, "clipboard", {value: undefined});
        document.addEventListener("copy", () => { window.copied = document.getSelection().toString(); });
    """)
    opened.find("#copy").click()
    opened.wait_for(lambda: opened.find("#copied").text == "Copied")
    assert opened.run("return window.copied") == opened.command


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_phone_and_desk_light_and_dark(driver, pictures, width, scheme):
    page = Page(driver, pictures.directory, width, scheme)
    page.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.run("return document.documentElement.scrollWidth") <= width
    wide = page.run("""
        return [...document.querySelectorAll("body *")]
            .filter((element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".scroll, .skip"))
            .map((element) => element.outerHTML.slice(0, 80));
    """)
    assert wide == []
    for plot in ("aesthetic", "nsfw", "both", "sides", "ratios"):
        box = page.find(f"#plot-{plot} svg").rect
        assert 150 < box["width"] <= width and box["height"] > 80
    for control in page.find_all("input, .buttons button"):
        assert control.rect["height"] >= 36
    dark = page.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 60)")
    assert dark == (scheme == "dark")
    assert page.errors() == []


def test_the_plots_change_their_colours_with_the_scheme(driver, pictures):
    page = Page(driver, pictures.directory)

    def fill():
        return page.find("#plot-aesthetic svg .layer_1_marks path").get_attribute("fill")

    light = fill()
    page.prefer("dark")
    page.wait_for(lambda: page.run("return document.documentElement.dataset.drawn") == "dark")
    assert fill() != light
    assert page.errors() == []


def test_every_picture_plot_and_control_has_a_name_for_a_screen_reader(opened):
    nameless = opened.run("""
        const named = (element) => element.getAttribute("aria-label") || element.textContent.trim()
            || (element.labels && element.labels.length) || element.getAttribute("alt") !== null;
        return [...document.querySelectorAll("button, input, textarea, img, [role=region], section")]
            .filter((element) => !named(element)).map((element) => element.outerHTML.slice(0, 80));
    """)
    assert nameless == []
    for plot in opened.find_all(".chart"):
        assert plot.get_attribute("role") == "graphics-document"
        assert len(plot.get_attribute("aria-label")) > 80
    assert opened.run("return document.documentElement.lang") == "en"
    levels = opened.run("return [...document.querySelectorAll('h1, h2, h3')].map((heading) => +heading.tagName[1])")
    assert levels[0] == 1 and max(b - a for a, b in itertools.pairwise(levels)) == 1


def test_nothing_in_keys_captions_and_paths_runs(driver, hostile):
    page = Page(driver, hostile.directory)
    page.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    for element in page.find_all(".sheet li, .examples li"):
        page.run("arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))", element)
    page.settle()
    assert page.run("return window.hacked") is None
    shown = page.run("return [...document.querySelectorAll('.caption')].map((caption) => caption.textContent)")
    captions = {row["caption"].replace("\0", "\ufffd") for row in hostile.rows}
    assert {text.replace("\0", "\ufffd") for text in shown} == captions
    hebrew = [text for text in captions if text.startswith("\u05e2")]
    assert len(hebrew) == 1
    directions = page.run(
        "return [...document.querySelectorAll('.caption')].filter((caption) => caption.textContent === arguments[0])"
        ".map((caption) => getComputedStyle(caption).direction)",
        hebrew[0],
    )
    assert set(directions) == {"rtl"}
    names = page.run("return [...document.querySelectorAll('.name bdi')].map((name) => name.textContent)")
    assert any("<script>window_hacked" in name for name in names)
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert page.errors() == []


def test_a_page_from_elsewhere_cannot_be_loaded_into_it(driver, pictures):
    page = Page(driver, pictures.directory)
    page.run(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s);"
    )
    assert page.run("return window.hacked") is None
    assert any("Content Security Policy" in error for error in page.errors())


def test_an_empty_dataset_opens_without_errors(driver, tmp_path, curate):
    from tars import write_tar

    write_tar(tmp_path / "in" / "a.tar", [("a.txt", b"text")])
    output = curate(str(tmp_path / "in"))
    report.write(str(output.directory))
    page = Page(driver, output.directory, PHONE)
    assert "No image has a score" in page.find("main").text
    assert page.errors() == []
