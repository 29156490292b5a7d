"""How much of a text is in the language that was asked for: by script, and by function words.

A rule, not a model: function words (the, und, est ...) are a third to a half of running text and hardly cross
languages. A word known in one language only votes; words known nowhere (names, content words) and words known in
several follow the vote of their sentence, and are taken on trust where nobody votes. Code, identifiers, numbers and
links belong to no language and are left out.
"""

from __future__ import annotations

import re

_LEXICON = {
    "en": """
        the a an and or but if then of to in on at by for from with without as is are was were be been being
        am do does did have has had will would can could should must may might not no this that these those it
        its he she they we you i me him her them us my your his our their what which who when where why how so
        because there here than into out up down about after before between all each both only also just very
        more most some any one two three first let need now s t ll re ve answer
    """,
    "fr": """
        le la les un une des du de et ou mais si alors donc car que qui quoi dont où à au aux en dans sur sous
        par pour avec sans comme est sont était étaient être été suis avoir ai as a ont avait ce cette ces cet
        il elle ils elles on nous vous je tu me te se lui leur leurs mon ton son ma ta sa mes tes ses notre
        votre ne pas plus très aussi puis maintenant faut fait peut doit tout tous toute l d j c n s t qu deux
        trois réponse voici chaque entre
    """,
    "de": """
        der die das den dem des ein eine einen einem einer eines und oder aber wenn dann also denn dass weil
        ob als wie von zu zum zur in im an am auf aus bei mit nach über unter vor für ohne um durch ist sind
        war waren sein bin hat haben hatte wird werden wurde kann können muss müssen soll nicht kein keine nur
        auch noch schon sehr mehr ich du er sie es wir ihr mich dich ihn uns mein dein sich dies diese dieser
        dieses was wer wo warum hier da jetzt so zwei drei antwort alle jede zwischen beide
    """,
    "es": """
        el la los las un una unos unas de del y o pero si entonces que quien cual donde cuando porque por para
        con sin en sobre entre a al como es son era eran ser sido estar está están fue hay he ha han había no
        ni sí muy más también solo ya lo le les se me te nos mi tu su mis tus sus este esta estos estas ese
        esa eso esto yo él ella ellos nosotros puede debe tiene todo todos cada ahora aquí dos tres respuesta
        qué cómo
    """,
}
FUNCTION_WORDS = {name: frozenset(words.split()) for name, words in _LEXICON.items()}
SPELLING: dict[str, frozenset[str]] = {"de": frozenset("äöüß"), "es": frozenset("ñ"), "fr": frozenset("çèêëœîïûù")}
LANGUAGES = (*FUNCTION_WORDS, "zh")

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]*>|\b[a-z]+[A-Z]\w*", re.DOTALL)
_CHUNK = re.compile(r"\S+")
_IDENTIFIER = re.compile(r"[\d_\\=]")
_SENTENCE = re.compile(r"[.!?;:\n。！？；：]+")
_WORD = re.compile(r"[㐀-䶿一-鿿豈-﫿]|[぀-ヿ]+|[^\W\d_]+")


def language_consistency(text: str, language: str) -> float:
    """The share, 0 to 1, of the words of `text` that are in `language` (one of `LANGUAGES`); 1 where there is no word.

    A Chinese character counts as a word. Raises `ValueError` for a language that it does not know.
    """
    if language not in LANGUAGES:
        raise ValueError(f"no rule for language {language!r}; known are {', '.join(LANGUAGES)}")
    words, consistent = 0, 0.0
    # Chinese has no spaces, so an identifier inside it must not swallow the characters around it.
    spaced = re.sub(r"([㐀-䶿一-鿿豈-﫿])", r" \1 ", text)
    prose = _CHUNK.sub(lambda chunk: " " if _IDENTIFIER.search(chunk[0]) else chunk[0], _CODE.sub(" ", spaced))
    for sentence in _SENTENCE.split(prose):
        found = _WORD.findall(sentence)
        votes = [_vote(word.lower(), language) for word in found]
        ours, theirs = votes.count(True), votes.count(False)
        undecided = len(votes) - ours - theirs
        # A Latin word that nobody vouches for says nothing about a Latin script, but is foreign to a Chinese text.
        trust = (ours / (ours + theirs) if ours + theirs else 1.0) if language != "zh" else 0.0
        words += len(found)
        consistent += ours + undecided * trust
    return consistent / words if words else 1.0


def _vote(word: str, language: str) -> bool | None:
    """True: surely of the language. False: surely of another one. None: cannot tell from the word alone."""
    if _is_han(word[0]):
        return language == "zh"
    if language == "zh" or not _is_latin(word):
        return False
    homes = {name for name, known in FUNCTION_WORDS.items() if word in known}
    homes = homes or {name for name, letters in SPELLING.items() if letters & set(word)}
    if not homes or (language in homes and len(homes) > 1):
        return None
    return language in homes


def _is_han(character: str) -> bool:
    return "㐀" <= character <= "䶿" or "一" <= character <= "鿿" or "豈" <= character <= "﫿"


def _is_latin(word: str) -> bool:
    return all(character < "ɐ" or "Ḁ" <= character <= "ỿ" for character in word)
