"""The language rule on running text of each language, and on what belongs to none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.rl.language import LANGUAGES, language_consistency

TEXTS = {
    "en": "First I need to find the cheapest hotel in the city. Then the train leaves at nine, and we can book it.",
    "fr": "D'abord il faut trouver l'hôtel le moins cher de la ville. Ensuite le train part, et nous pouvons réserver.",
    "de": "Zuerst muss ich das billigste Hotel in der Stadt finden. Dann fährt der Zug ab, und wir können buchen.",
    "es": "Primero hay que encontrar el hotel más barato de la ciudad. Después sale el tren, y podemos reservar.",
    "zh": "首先我需要找到城市里最便宜的酒店。然后火车出发，我们可以预订。",
}


def test_every_known_language_is_tried():
    assert set(TEXTS) == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("written", LANGUAGES)
def test_a_text_is_consistent_with_its_own_language_and_with_no_other(written, language):
    share = language_consistency(TEXTS[written], language)
    assert share >= 0.9 if written == language else share <= 0.35


def test_half_a_text_in_another_language_counts_half():
    both = "The answer is in the box. Die Antwort ist im Kasten."
    assert language_consistency(both, "en") == pytest.approx(6 / 11, abs=0.01)
    assert language_consistency("the 城 市", "en") == pytest.approx(1 / 3)
    assert language_consistency("the 城 市", "zh") == pytest.approx(2 / 3)


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_numbers_identifiers_and_links_belong_to_no_language(language):
    neutral = "get_all_hotels x=3 42 `the and of` getWeather https://the.org/of <result> ```python\nfor the in of\n```"
    assert language_consistency(neutral, language) == 1.0
    assert language_consistency(TEXTS[language] + "\n" + neutral, language) == language_consistency(
        TEXTS[language], language
    )


def test_an_identifier_inside_chinese_does_not_swallow_its_neighbours():
    assert language_consistency("我调用get_hotels函数得到42个", "zh") == 1.0
    assert language_consistency("我 the 你", "zh") == pytest.approx(2 / 3)


def test_names_are_taken_on_trust_where_nothing_speaks_against_them():
    assert language_consistency("Paris, Lyon", "en") == 1.0
    assert language_consistency("Москва", "en") == 0.0
    assert language_consistency("ありがとう", "zh") == 0.0


def test_an_unknown_language_is_refused_with_those_known():
    with pytest.raises(ValueError, match="known are en, fr, de, es, zh"):
        language_consistency("saluton", "eo")


@given(st.text(), st.sampled_from(LANGUAGES))
def test_any_text_has_a_share_between_0_and_1(text, language):
    assert 0.0 <= language_consistency(text, language) <= 1.0
