"""The field's words are explained where they stand, from one list, and each only once."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup

from workbench.files import read_json
from workbench.report.html import write_html
from workbench.wording.glossary import GLOSSARY, Explainer, glossary
from workbench.wording.text import LANGUAGES

HARD_WORDS = {
    "probe", "decode", "prefill", "bits_per_byte", "aa", "pue", "ttft", "tpot", "goodput",
    "ternary_share",
}  # fmt: skip


def page_of(run, language: str) -> BeautifulSoup:
    path = write_html(run.folder, lambda *_: [], language)
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_the_list_is_whole_in_both_languages() -> None:
    known = read_json(GLOSSARY)
    assert known.keys() >= HARD_WORDS
    for key, said in known.items():
        assert said.keys() == set(LANGUAGES), key
        for language in LANGUAGES:
            term = glossary(language)[key]
            assert term.name and term.text.endswith("."), key
            assert not re.compile(term.forms).groups, "the word is found by its own name's group"
        assert re.search("[а-яё]", said["ru"]["text"]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_word_of_the_page_leads_to_its_one_explanation(shared_run, language) -> None:
    page = page_of(shared_run, language)
    words = page.select("a.term")
    explained = [each["id"] for each in page.select("#glossary dl > div")]
    assert len(explained) == len(set(explained))
    assert {word["aria-describedby"] for word in words} == set(explained)
    assert {f"term-{key}" for key in HARD_WORDS - {"aa", "ternary_share"}} <= set(explained)
    reached = [word["href"] for word in words if word.get("tabindex") != "-1"]
    assert len(reached) == len(set(reached)) == len(explained), "one stop of the keyboard a word"
    texts = page.get_text()
    for place in explained:
        assert texts.count(page.find(id=place).dd.text) == 1, "printed nowhere twice"


def test_what_is_no_sentence_is_left_as_it_is() -> None:
    explain = Explainer("en")
    kept = (
        '<p><code>probe</code> <a href="#x">decode</a> <em title="PUE">x</em> probed A/AB &amp; '
        '&#39;<br>&lt;PUE-2</p><script>"PUE"</script><p lang="ru">PUE</p><!-- PUE -->'
    )
    assert explain(kept) == kept
    assert explain("<p>PUE, PUE</p>").count("<a ") == 1
    assert 'tabindex="-1"' in explain("<p>PUE</p>"), "a further part of the same page"
    assert [term.key for term in explain.met] == ["pue"]


@pytest.mark.browser
def test_a_word_is_explained_by_pointer_and_keyboard(shared_run, browser) -> None:
    address = write_html(shared_run.folder, lambda *_: [], "ru").as_uri()
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(address)
    shown = page.locator("#term-shown")
    words = page.locator('#gates a.term, #summary a.term:not([tabindex="-1"])')
    first, last = words.first, words.last
    first.focus()
    expected = page.locator(f"{first.get_attribute('href')} dd").text_content()
    assert shown.is_visible() and shown.inner_text() == expected
    page.keyboard.press("Escape")
    assert shown.is_hidden()
    last.hover()
    expected = page.locator(f"{last.get_attribute('href')} dd").text_content()
    assert shown.inner_text() == expected
    box = shown.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    shown.hover()
    page.wait_for_timeout(400)
    assert shown.is_visible(), "the pointer may go to the text"
    page.mouse.move(2, 2)
    page.wait_for_timeout(400)
    assert shown.is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.mark.browser
def test_a_touch_explains_and_goes_nowhere(shared_run, browser) -> None:
    """A finger has no pointer to hover with: the first touch explains a word where it stands."""
    address = write_html(shared_run.folder, lambda *_: [], "ru").as_uri()
    context = browser.new_context(
        offline=True, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800}
    )
    page = context.new_page()
    page.goto(address)
    word = page.locator('#summary a.term:not([tabindex="-1"])').first
    told = page.locator(f"{word.get_attribute('href')} dd").text_content()
    before = page.evaluate("window.scrollY")
    word.tap()
    shown = page.locator("#term-shown")
    shown.wait_for(state="visible")
    assert shown.inner_text() == told
    assert page.evaluate("location.hash") == "" and page.evaluate("window.scrollY") == before
    page.locator("h1").tap()
    shown.wait_for(state="hidden")
    context.close()
