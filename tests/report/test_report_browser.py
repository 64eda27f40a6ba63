"""The report in real headless Chromium: it works, asks for nothing, and hostile completions stay text.

Needs Debian's chromium and chromium-driver, which CI installs.
"""

import threading

import pytest
from browsing import browser, installed, requests
from making_runs import Plan, make_run
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from selfplay.report.html import write_report
from selfplay.report.server import make_server

pytestmark = pytest.mark.skipif(
    not installed(), reason="chromium and chromium-driver are not installed (apt-get install them)"
)


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory):
    """The finished run's report, opened."""
    path = write_report(finished_run)
    with browser(tmp_path_factory.mktemp("profile") / "p") as driver:
        driver.get("about:blank")
        requests(driver)
        driver.get(f"file://{path}")
        yield driver


@pytest.fixture
def fresh(page):
    """The page as it first opens."""
    address = page.current_url.split("#")[0]
    page.get("about:blank")
    page.get(address)
    page.get_log("browser")
    requests(page)
    return page


def position(driver) -> str:
    return driver.find_element(By.ID, "position").text


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def shown(driver):
    (article,) = [one for one in driver.find_elements(By.CSS_SELECTOR, "#deck article") if one.is_displayed()]
    return article


def wait_for(driver, condition):
    WebDriverWait(driver, 5, poll_frequency=0.05).until(lambda _: condition())


def test_it_opens_without_an_error_or_a_request(finished_run, page):
    assert requests(page) == [f"file://{finished_run}/report.html"]
    assert page.get_log("browser") == []
    assert page.title.startswith("quickstart: Iteration 2 beats the start")
    assert page.find_element(By.TAG_NAME, "h1").text.startswith("Iteration 2 beats the start")


def test_hostile_text_is_shown_and_does_nothing(fresh):
    article = fresh.find_element(By.ID, "t1")
    text = article.find_elements(By.TAG_NAME, "pre")[-1].get_property("textContent")
    assert (
        text.startswith("</pre></script><script>document.title")
        and "onerror=" in text
        and "\u27e8U+001B\u27e9[31m" in text
    )
    assert (
        fresh.execute_script("return document.querySelectorAll('#deck img, #deck a, #deck script, #deck style').length")
        == 0
    )
    assert "owned" not in fresh.title
    assert fresh.find_element(By.TAG_NAME, "body").is_displayed()
    assert fresh.get_log("browser") == []


def test_injected_scripts_and_pictures_are_refused_by_the_policy(fresh):
    fresh.execute_script("""
        const script = document.createElement("script");
        script.textContent = "document.title = 'owned'";
        const picture = new Image();
        picture.src = "https://example.com/x.png";
        document.body.append(script, picture);
    """)
    messages: list[str] = []

    def both_refused() -> bool:
        messages.extend(entry["message"] for entry in fresh.get_log("browser"))
        return sum("Content Security Policy" in message for message in messages) >= 2

    wait_for(fresh, both_refused)
    assert "owned" not in fresh.title
    assert [address for address in requests(fresh) if "example.com" in address] == []


def test_stepping_by_keys_and_buttons(fresh):
    assert position(fresh) == "1 of 256"
    press(fresh, "j", "j", Keys.ARROW_RIGHT)
    assert position(fresh) == "4 of 256"
    press(fresh, "k", Keys.ARROW_LEFT)
    assert position(fresh) == "2 of 256"
    assert shown(fresh).get_attribute("id") == "t2" and fresh.current_url.endswith("#t2")
    fresh.find_element(By.ID, "previous").click()
    fresh.find_element(By.ID, "previous").is_enabled()
    assert position(fresh) == "1 of 256" and not fresh.find_element(By.ID, "previous").is_enabled()
    press(fresh, "k")
    assert position(fresh) == "1 of 256"
    fresh.find_elements(By.CSS_SELECTOR, "#list button")[4].click()
    assert position(fresh) == "5 of 256"


def test_filters_show_exactly_their_share(fresh):
    buttons = fresh.find_elements(By.CSS_SELECTOR, "#filters button")
    assert [button.get_attribute("data-filter") for button in buttons][:3] == ["all", "win", "loss"]
    for button in buttons:
        name, count = button.get_attribute("data-filter"), button.find_element(By.TAG_NAME, "span").text
        button.click()
        assert position(fresh) == f"1 of {count}"
        entries = fresh.execute_script(
            "return [...document.querySelectorAll('#list li')].filter(e => !e.hidden).length"
        )
        assert entries == int(count)
        if name in ("win", "loss", "tie", "unscored"):
            assert shown(fresh).get_attribute("data-outcome") == name
    press(fresh, "2")
    assert buttons[1].get_attribute("aria-pressed") == "true" and buttons[0].get_attribute("aria-pressed") == "false"


def test_search_finds_words_in_prompts_and_answers(fresh):
    press(fresh, "/")
    assert fresh.switch_to.active_element.get_attribute("id") == "search"
    press(fresh, "DOCUMENT.TITLE")
    wait_for(fresh, lambda: position(fresh) == "1 of 1")
    assert shown(fresh).get_attribute("id") == "t1" and "q=DOCUMENT" in fresh.current_url
    press(fresh, "zzz")
    wait_for(fresh, lambda: fresh.find_element(By.ID, "nothing").is_displayed())
    assert position(fresh) == "0 of 0"
    fresh.refresh()  # the address remembers the search
    assert (
        position(fresh) == "0 of 0"
        and fresh.find_element(By.ID, "search").get_attribute("value") == "DOCUMENT.TITLEzzz"
    )
    press(fresh, "/")
    press(fresh, Keys.CONTROL + "a", Keys.BACKSPACE)
    wait_for(fresh, lambda: position(fresh).endswith("of 256"))


def test_differing_words_are_marked_and_the_text_stays_the_same(fresh):
    press(fresh, "j")
    article = shown(fresh)
    boxes = article.find_elements(By.TAG_NAME, "pre")
    before = [box.get_property("textContent") for box in boxes]
    for k in (1, 2):
        new = {mark.text for mark in boxes[k].find_elements(By.TAG_NAME, "ins")}
        assert new
        unmarked = fresh.execute_script(
            "const c = arguments[0].cloneNode(true); c.querySelectorAll('ins').forEach(e => e.remove()); "
            "return c.textContent",
            boxes[k],
        )
        rest, words = iter(before[k - 1].split()), unmarked.split()
        assert all(word in rest for word in words)  # what is unmarked is a subsequence of the column before
    Select(fresh.find_element(By.ID, "marks")).select_by_value("off")
    assert article.find_elements(By.CSS_SELECTOR, "ins, del") == []
    assert [box.get_property("textContent") for box in boxes] == before


CONTRAST = """
    const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map(Number).map(linear);
                           return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const shown = "h1, .lead, .c0, .c1, .c2, .c3, .muted, summary, .chip.win, .chip.loss, small";
    return Math.min(...[...document.querySelectorAll(shown)].map((element) => {
      const ink = light(getComputedStyle(element).color);
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }));
"""  # the lowest contrast ratio of text to paper, after WCAG 2.1, which asks for 4.5


def test_the_theme_can_be_turned_and_both_have_contrast(fresh):
    paper = "return getComputedStyle(document.body).backgroundColor"
    first = fresh.execute_script(paper)
    assert fresh.execute_script(CONTRAST) >= 4.5
    fresh.find_element(By.ID, "theme").click()
    assert fresh.execute_script(paper) != first
    assert fresh.execute_script(CONTRAST) >= 4.5
    fresh.find_element(By.ID, "theme").click()
    assert fresh.execute_script(paper) == first


def test_without_scripts_every_transcript_can_be_read(finished_run, tmp_path):
    path = write_report(finished_run)
    with browser(tmp_path / "p", scripts=False) as driver:
        driver.get(f"file://{path}")
        articles = driver.find_elements(By.CSS_SELECTOR, "#deck article")
        assert len(articles) == 256 + 80 and articles[0].is_displayed() and articles[255].is_displayed()
        assert not driver.find_element(By.ID, "tools").is_displayed()
        assert "Without scripts" in driver.find_element(By.CLASS_NAME, "plainly").text


def test_two_thousand_transcripts_paint_within_a_second_on_a_phone_too(tmp_path):
    path = write_report(make_run(tmp_path / "big", Plan(prompts=2000, filler=25)))
    with browser(tmp_path / "p", width=390, height=844, dark=True) as driver:
        driver.get(f"file://{path}")
        wait_for(
            driver,
            lambda: driver.execute_script("return performance.getEntriesByName('first-contentful-paint').length"),
        )
        first = driver.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
        assert first < 1000
        assert position(driver) == "1 of 2000"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        press(driver, "/")
        press(driver, "onerror")
        wait_for(driver, lambda: position(driver) == "1 of 1")
        assert driver.get_log("browser") == []


def test_a_live_page_reloads_itself_when_the_run_goes_on(tmp_path):
    run = make_run(tmp_path / "r", Plan(prompts=8, iterations=1))
    with make_server(run) as server, browser(tmp_path / "p") as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver.get(f"http://127.0.0.1:{server.server_address[1]}/")
        driver.execute_script("window.old = true")
        wait_for(driver, lambda: any("/version" in address for address in requests(driver)))
        (run / "iteration-001/label/judge_health.json").write_text('{"pairs": 7}')
        WebDriverWait(driver, 10, poll_frequency=0.2).until(lambda _: not driver.execute_script("return window.old"))
        assert "pairs" in driver.find_element(By.ID, "judge").text
        assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]] == []
        server.shutdown()
