"""The page in Chromium without a window: what is drawn, what a click does, what it asks for."""

import json
import os
import shutil

import pytest

from pruning.results import frontier
from pruning.results.points import gather, metrics, read_results

pytestmark = pytest.mark.job

LONG, ACC = "wiki/text/token_perplexity_2048", "quick/arc_easy/acc"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def driver():
    """Start Chromium; it keeps what its console said and what the page asked the network for."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium or no chromedriver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--disable-gpu", "--window-size=1300,1000"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses root
    options.add_argument("--disable-dev-shm-usage")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(driver, varied):
    """Open the page of the study and wait until all charts are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    frontier.write(varied, html=True)
    driver.get((varied / "frontier.html").as_uri())
    drawn = "return document.documentElement.dataset.drawn"
    WebDriverWait(driver, 30).until(lambda _: driver.execute_script(drawn))
    return driver


def find(driver, selector: str) -> list:
    return driver.find_elements("css selector", selector)


def column(driver, head: str) -> list[str]:
    """Return the texts of a column, in the order shown."""
    heads = [cell.text.rstrip(" ▲▼") for cell in find(driver, "#results thead th")]
    place = f"#results tbody tr > :nth-child({heads.index(head) + 1})"
    return [cell.text for cell in find(driver, place)]


def click(driver, head: str) -> str | None:
    """Click a column's head; return how it says that it is sorted."""
    cells = find(driver, "#results thead th")
    (cell,) = (cell for cell in cells if cell.text.rstrip(" ▲▼") == head)
    button = cell.find_element("tag name", "button")
    driver.execute_script("arguments[0].scrollIntoView({inline: 'center'})", button)
    button.click()
    return cell.get_attribute("aria-sort")


def test_points_drawn_are_the_results(opened, varied):
    results = read_results(varied)
    keys = metrics(gather(results))
    assert keys == [LONG, ACC]
    for index, key in enumerate(keys):
        finite = [r for r in results if r.evaluation.pruned[key] is not None]
        assert len(find(opened, f"#quality-{index} .results_marks path")) == len(finite)
        assert len(find(opened, f"#quality-{index} .dense_marks path")) == 1
    assert len(find(opened, "#kept-0 .mark-rect.role-mark path")) == 2 * len(results)
    assert len(find(opened, "#speedups .speedups_marks path")) == 3 * len(results)
    assert len(find(opened, ".chart svg")) == len(find(opened, ".chart"))


def test_hovering_names_a_point(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    (point,) = (
        path
        for path in find(opened, "#quality-0 .results_marks path")
        if "ziplm, 2.000x" in path.get_attribute("aria-label")
    )
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(opened).move_to_element(point).perform()
    said = "return document.querySelector('#vg-tooltip-element.visible')?.textContent"
    text = WebDriverWait(opened, 10).until(lambda _: opened.execute_script(said))
    for part in (
        "ziplm, 2.000x",
        "target2.000x",
        "predicted2.010x",
        "2.020x measured",
        f"{LONG}90.00",
    ):
        assert part in text


def test_a_click_sorts_and_another_the_other_way(opened):
    assert click(opened, LONG) == "ascending"
    assert column(opened, LONG) == ["40.00", "44.00", "90.00", "95.00", "200.00", "not finite"]
    assert click(opened, LONG) == "descending"
    assert column(opened, LONG) == ["200.00", "95.00", "90.00", "44.00", "40.00", "not finite"]
    assert click(opened, "speedup") == "ascending"
    numbers = [float(text.split("x")[0]) for text in column(opened, "speedup")]
    assert numbers == sorted(numbers)
    assert len(find(opened, "th[aria-sort]")) == 1
    assert click(opened, "result") == "ascending"
    assert column(opened, "result")[-1].startswith("ziplm, 2.000x")


def test_pareto_marks_follow_the_metric(opened):
    from selenium.webdriver.support.ui import Select

    data = opened.execute_script("return document.getElementById('data').textContent")
    pareto = json.loads(data)["pareto"]
    assert pareto[LONG] != pareto[ACC]
    for key in (ACC, LONG):
        Select(find(opened, "#metric")[0]).select_by_visible_text(key)
        marked = [row.get_attribute("data-name") for row in find(opened, "tr.pareto")]
        assert sorted(marked) == pareto[key]
        assert column(opened, "Pareto").count("◆") == len(marked)


def test_no_error_no_request_no_foreign_script(driver, request):
    driver.get_log("performance")
    driver.get_log("browser")
    opened = request.getfixturevalue("opened")
    asked = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"].endswith("WillBeSent")]
    assert len(urls) == 1
    assert urls[0].startswith("file:")
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.broken") is None
    assert find(opened, "img") == []
    refused = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
    """
    assert opened.execute_async_script(refused) == "connect-src"
