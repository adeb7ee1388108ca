"""The page in a real browser: images in, answers read, the budget moved by the keyboard."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian's chromium-driver)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage",
                     f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, Service(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(browser, server):
    browser.get("http://{}:{}/".format(*server.address))
    until(browser, lambda: "3 classes" in text(browser, "#model"))
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def until(browser, holds):
    return WebDriverWait(browser, 60).until(lambda _: holds())


def text(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector).text


def texts(browser, selector):
    return [each.text for each in browser.find_elements(By.CSS_SELECTOR, selector)]


def sizes(browser):
    """Of each card the side of what the network saw, and of the frame, in pixels."""
    return [
        (card.find_element(By.CSS_SELECTOR, ".seen").size["width"],
         card.find_element(By.CSS_SELECTOR, ".frame").size["width"] - 2)
        for card in browser.find_elements(By.CSS_SELECTOR, ".card")]


def answered(browser, count):
    images = "image" if count == 1 else "images"
    return until(browser, lambda: text(browser, "#status") == f"{count} {images} answered.")


def test_two_images_and_a_budget(page, images, tmp_path):
    paths = [images / "val" / f"class{label}" / "0.png" for label in (0, 1)]
    page.find_element(By.ID, "files").send_keys("\n".join(map(str, paths)))
    answered(page, 2)
    assert texts(page, "figcaption") == ["0.png", "0.png"]
    assert all(name.startswith("class") for name in texts(page, ".card h2"))
    assert [len(card.find_elements(By.CSS_SELECTOR, ".top tr")) for card in
            page.find_elements(By.CSS_SELECTOR, ".card")] == [3, 3]
    assert "2 images, " in text(page, "#total") and "of what 32 px for all" in text(page, "#total")

    slider = page.find_element(By.ID, "budget")
    slider.send_keys(Keys.END)
    until(page, lambda: texts(page, ".where") == ["seen at 32 of 32 px"] * 2)
    dearest = text(page, "#total")
    until(page, lambda: all(abs(seen - frame) <= 1 for seen, frame in sizes(page)))
    slider.send_keys(Keys.HOME)
    until(page, lambda: texts(page, ".where") == [
        "answered by the predictor, which saw 16 px"] * 2)
    until(page, lambda: all(abs(2 * seen - frame) <= 2 for seen, frame in sizes(page)))
    assert text(page, "#total") != dearest and "right at this budget" in text(page, "#expected")
    assert texts(page, "tr.chosen th").count("predictor") == 2

    page.find_element(By.CSS_SELECTOR, ".card button").send_keys(Keys.ENTER)
    assert len(page.find_elements(By.CSS_SELECTOR, ".card")) == 1
    assert text(page, "#total").startswith("1 image, ")


def test_what_is_no_image_is_told(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.find_element(By.ID, "files").send_keys(str(tmp_path / "broken.png"))
    until(page, lambda: "cannot be decoded" in text(page, ".where"))
    assert text(page, ".card h2") == "Not answered"
    page.get_log("browser")  # that the picture and the request failed


def test_it_can_be_used_without_seeing_or_pointing(page, images):
    """Everything that is shown has a name, and everything that does something takes the focus."""
    page.find_element(By.ID, "files").send_keys(str(images / "val" / "class2" / "0.png"))
    answered(page, 1)
    named = page.execute_script("""
        return [...document.querySelectorAll("input, button, meter, img, ul, section")].map(
            (each) => [each.tagName, each.getAttribute("aria-label") || each.alt ||
                       each.labels?.[0]?.textContent || ""]);""")
    assert named and all(name.strip() for _, name in named), named
    focused = []
    for _ in range(4):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focused.append(page.switch_to.active_element.get_attribute("id")
                       or page.switch_to.active_element.tag_name)
    assert {"files", "budget", "button"} <= set(focused)
    assert page.find_element(By.ID, "status").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page, images, width):
    page.set_window_size(width, 900)
    page.find_element(By.ID, "files").send_keys(str(images / "val" / "class0" / "1.png"))
    answered(page, 1)
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
