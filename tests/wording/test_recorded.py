"""Recorded sentences: said in the page's language, with the digits and names they were given."""

from __future__ import annotations

import re

from workbench.wording.recorded import patterns, recorded
from workbench.wording.text import Texts

LOAD = (
    "requests of 42 prompt and 9 output tokens, the means of the load "
    "(profile_load.synthetic, assumed)"
)
SAID = {
    "by the gates fixed before the run: no go. Both are in the report": (
        "по условиям, заданным до прогона: не внедрять. В отчёте есть оба"
    ),
    "the hours of training and rehearsal have no price, and cost nothing here": (
        "у часов нет цены, и здесь они ничего не стоят (обучение, репетиция)"
    ),
    "energy of training is left out: it was not metered": (
        "энергия не учтена (обучение): счётчиком не измерено"
    ),
    "assumed because of power_w.ternary, requests_per_day": (
        "допущение из-за: мощность под нагрузкой, троичная, запросов в день"
    ),
    "no interval: 9 requests depend on one another over about 4; 64 or more are needed to tell how "
    "much": (
        "нет интервала: запросы (9) зависят друг от друга на протяжении около 4; "
        "чтобы сказать, насколько, нужно 64 или больше"
    ),
    "no interval: 1 blocks, an interval needs 6": "нет интервала: блоков 1, для интервала нужно 6",
    "ternary less full_precision on the same prompts; below 0 is worse": (
        "троичная минус полная точность на тех же запросах; меньше 0 — хуже"
    ),
    f"{LOAD}; a request takes 0.109 s of a machine in ternary (batch 4)": (
        "запросы из 42 токенов запроса и 9 токенов ответа, средние нагрузки "
        "(profile_load.synthetic, допущение); запрос занимает 0,109 с машины в «троичная» (пакет 4)"
    ),
}


def test_a_sentence_and_its_parts_are_said_in_russian() -> None:
    for english, russian in SAID.items():
        assert recorded(english, Texts("ru")) == recorded(russian, Texts("ru"))
        assert recorded(english, Texts("ru")).text == russian


def test_an_arm_may_have_a_name_of_the_pilots_own() -> None:
    said = recorded("above 1 elsewhere is faster; full_precision over elsewhere", Texts("ru"))
    assert not said.known, "the second is no recorded sentence"
    said = recorded("above 1 elsewhere is faster", Texts("ru"))
    assert said.known and said.text == "больше 1 — «elsewhere» быстрее"
    assert not recorded("moon: the night was full", Texts("ru")).known, "no arm, no sentence"


def test_english_stays_as_it_was_recorded() -> None:
    for begins in ("the hours of", "energy of training", "by the gates"):
        (english,) = [said for said in SAID if said.startswith(begins)]
        assert recorded(english, Texts()).text == english


def test_english_has_its_plural_forms() -> None:
    assert recorded("no interval: 1 blocks, an interval needs 6", Texts()).text == (
        "no interval: 1 block, an interval needs 6"
    )


def test_what_no_pattern_knows_stays_and_says_so() -> None:
    new = recorded("positive is worse; something new", Texts("ru"))
    assert new.text == "positive is worse; something new" and not new.known
    assert recorded("report.cost.assumed_power_w", Texts("ru")).known, "a name is no sentence"


def test_every_pattern_has_russian_words_for_all_its_places() -> None:
    for pattern in patterns():
        places = {name for name, _ in re.findall(r"\{([#@]?\w+)(:\w+)?\}", pattern.templates["ru"])}
        assert places == pattern.places.keys(), pattern.templates
