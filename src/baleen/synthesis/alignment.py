"""The alignment domain: the right word, in the language and the form that were asked for, and nothing beside it.

Numbers 0 to 9 and six colours in four languages, alone or in pairs, in four forms. The verifier is strict: another
language, another case, a sentence around it or a second key is a wrong answer.
"""

from __future__ import annotations

import json
import random

from baleen.synthesis.arithmetic import Problem

LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish"}
FORMS = {
    "plain": ("plain", "as a plain word"),
    "json": ('as JSON {"answer":"..."}', 'as JSON under the key "answer"'),
    "brackets": ("in [brackets]", "between [ and ]"),
    "parentheses": ("in (parentheses)", "between ( and )"),
}
PHRASINGS = ("Write {0} in {1}, {2}.", "{0} in {1}, {2}, please.", "Say {0} in {1}. Answer {2}.")
_LEXICON = {
    "en": "zero one two three four five six seven eight nine red blue green yellow black white",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf rouge bleu vert jaune noir blanc",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun rot blau grün gelb schwarz weiß",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve rojo azul verde amarillo negro blanco",
}
LEXICON = {language: words.split() for language, words in _LEXICON.items()}
# How a question names each entry: numbers in digits, colours in English.
ITEMS = (*map(str, range(10)), *LEXICON["en"][10:])


def wording(rng: random.Random, difficulty: int) -> Problem:
    """One item (difficulty 1) or two (difficulty 2) to be put into a language and a form."""
    items = rng.sample(ITEMS, difficulty)
    language, form = rng.choice(list(LANGUAGES)), rng.choice(list(FORMS))
    asked = " and ".join(items)
    text = rng.choice(PHRASINGS).format(asked, LANGUAGES[language], rng.choice(FORMS[form]))
    answer = expected(items, language, form)
    return Problem(
        text=text[0].upper() + text[1:],
        answer=answer,
        difficulty=difficulty,
        source=f"def solve(tools):\n    return {answer!r}\n",
        key=f"{asked} {language} {form}",
        metadata={"items": items, "language": language, "form": form},
    )


def expected(items: list[str], language: str, form: str) -> str:
    """The answer as it should be written."""
    words = words_for(items, language)
    if form == "json":
        return json.dumps({"answer": words}, ensure_ascii=False, separators=(",", ":"))
    return {"plain": words, "brackets": f"[{words}]", "parentheses": f"({words})"}[form]


def words_for(items: list[str], language: str) -> str:
    """The items in that language, before they take a form."""
    return " ".join(LEXICON[language][ITEMS.index(item)] for item in items)


def is_right(answer: str, items: list[str], language: str, form: str) -> bool:
    """Whether the answer is exactly what was asked for; white space inside JSON is the only liberty."""
    if form != "json":
        return answer == expected(items, language, form)
    try:
        pairs = json.loads(answer, object_pairs_hook=list)
    except ValueError:
        return False
    return bool(pairs == [("answer", words_for(items, language))])
