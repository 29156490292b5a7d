"""A document collection: what is searched is found, in any language, whatever the query's syntax."""

import itertools
import os
import random
import statistics
import string
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baleen.agent.tools.documents import Document, DocumentStore

DOCUMENTS = [
    ("whale", "Baleen whales", "Baleen whales filter small animals from the sea.\nThey have no teeth."),
    ("krill", "Krill", "Krill are small animals; whales eat them."),
    ("zh-whale", "须鲸", "须鲸没有牙齿，用鲸须过滤海水中的磷虾。座头鲸会唱歌。"),
    ("zh-sea", "海洋", "海洋覆盖地球表面的百分之七十一。"),
    ("ja", "クジラ", "クジラは海に住む哺乳類です。"),
    ("de", "Straßen", "Die Straßen von Köln sind alt. Café am Ring."),
]
STORE = DocumentStore.from_documents(DOCUMENTS)


def ids(query, *args, store=STORE, **kwargs):
    return [document.id for document in store.search(query, *args, **kwargs)]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("baleen", "whale"),
        ("WHALE teeth", "whale"),
        ("eating krill", "krill"),
        ("磷虾", "zh-whale"),
        ("座头鲸", "zh-whale"),
        ("什么动物用鲸须过滤海水？", "zh-whale"),
        ("海洋", "zh-sea"),
        ("地球表面", "zh-sea"),
        ("須 鲸", "zh-whale"),
        ("哺乳類", "ja"),
        ("cafe koln", "de"),
        ("鲸 whale 座头鲸会唱歌", "zh-whale"),
    ],
)
def test_a_query_finds_its_document_first_in_any_language(query, first):
    assert ids(query)[0] == first


def test_every_pair_of_neighbours_in_a_chinese_text_finds_it():
    text = "须鲸没有牙齿用鲸须过滤海水中的磷虾"
    assert all("zh-whale" in ids(text[i : i + 2]) for i in range(len(text) - 1))


def test_pairs_that_are_not_neighbours_in_a_chinese_text_do_not_match_it():
    assert ids("虾磷") == []


def test_a_quoted_phrase_must_occur_and_words_are_enough_when_none_does():
    assert ids('"small animals from"') == ["whale"]
    assert ids('"animals small" whales')  # no document has it: the words still find theirs


def test_a_title_weighs_more_than_a_mention():
    store = DocumentStore.from_documents(
        [
            ("a", "Other", "krill is mentioned here " + "and more " * 20),
            ("b", "Krill", "A small animal " + "of sea " * 20),
        ]
    )
    assert ids("krill", store=store) == ["b", "a"]


@pytest.mark.parametrize(
    "query",
    [
        "",
        '"',
        '""""',
        "AND OR NOT",
        "whale AND",
        "NEAR(whale krill, 5)",
        "title:whale",
        "-whale",
        "^whale",
        "whale*",
        "(((",
        "'; DROP TABLE documents; --",
        '" OR 1=1 --',
        "{title text}: whale",
        "a" * 100_000,
        "word " * 20_000,
        "\0whale\0",
        "\ud800",
        "鲸" * 5000,
    ],
)
def test_no_query_is_a_syntax_error_and_none_changes_the_collection(query):
    began = time.monotonic()
    STORE.search(query, 5)
    assert time.monotonic() - began < 1
    assert len(STORE) == len(DOCUMENTS)
    assert ids("baleen")[0] == "whale"


def test_operators_around_a_word_still_find_it():
    for query in ('title:"whale" AND (baleen OR foo*)', "+baleen -teeth", "NEAR(baleen whales)"):
        assert ids(query)[0] == "whale"


@settings(max_examples=300, deadline=None)
@example("鲸_磷虾")
@given(st.text(max_size=40) | st.text(alphabet=string.punctuation + "a鲸 ", max_size=30))
def test_any_text_is_a_query(query):
    assert all(isinstance(document, Document) for document in STORE.search(query, 3))


words = st.text(alphabet="abcdefgh鲸海磷虾", min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(words, min_size=1, max_size=12), min_size=1, max_size=12), st.data())
def test_a_document_is_found_by_any_of_its_words(texts, data):
    store = DocumentStore.from_documents((str(i), "t", " ".join(text)) for i, text in enumerate(texts))
    number = data.draw(st.integers(0, len(texts) - 1))
    word = data.draw(st.sampled_from(texts[number]))
    assert str(number) in ids(word, len(texts), store=store)
    store.close()


def test_sources_are_searched_apart_or_together_and_an_unknown_one_is_named():
    store = DocumentStore.from_documents({"wiki": DOCUMENTS[:2], "notes": [("whale", "My whale", "seen at sea")]})
    assert store.sources == ("wiki", "notes")
    assert [d.source for d in store.search("whale", 5, "notes")] == ["notes"]
    assert {d.source for d in store.search("whale", 5)} == {"wiki", "notes"}
    assert store.get("whale").source == "wiki"
    assert store.get("whale", "notes").title == "My whale"
    with pytest.raises(ValueError, match="no source 'web'; sources: wiki, notes"):
        store.search("whale", 5, "web")


def test_an_id_comes_once_in_a_source():
    with pytest.raises(ValueError, match="source 'documents' has two documents with the id 'krill'"):
        DocumentStore.from_documents([DOCUMENTS[1], DOCUMENTS[1]])


def test_an_empty_collection_finds_nothing():
    store = DocumentStore.from_documents([])
    assert (len(store), store.search("whale")) == (0, [])


def test_a_written_collection_answers_like_the_one_in_memory_and_cannot_be_changed(tmp_path):
    path = tmp_path / "whales of the sea.db"
    written = DocumentStore.from_documents(DOCUMENTS, path)
    again = DocumentStore.open(path)
    for query in ("whale", "鲸须", '"small animals"'):
        assert STORE.search(query) == written.search(query) == again.search(query) != []
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    before = path.read_bytes()
    again.search("'; DELETE FROM documents; --")
    assert path.read_bytes() == before


def test_a_collection_whose_making_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="two documents"):
        DocumentStore.from_documents([DOCUMENTS[0], DOCUMENTS[0]], tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_collection_is_refused(tmp_path):
    (tmp_path / "x.db").write_text("not a database, but long enough to be read as one " * 20)
    with pytest.raises(ValueError, match="no document collection"):
        DocumentStore.open(tmp_path / "x.db")
    with pytest.raises(FileNotFoundError, match="from_documents"):
        DocumentStore.open(tmp_path / "y.db")


def test_a_query_of_ten_thousand_documents_takes_less_than_ten_milliseconds():
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 8))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(vocabulary) + 1)))  # as in a language
    characters = [chr(0x4E00 + i) for i in range(2000)]

    def text():
        return " ".join(rng.choices(vocabulary, cum_weights=weights, k=60)) + "".join(rng.choices(characters, k=20))

    store = DocumentStore.from_documents(
        (str(i), " ".join(rng.choices(vocabulary, k=3)), text()) for i in range(10_000)
    )
    queries = [" ".join(rng.choices(vocabulary, cum_weights=weights, k=8)) for _ in range(60)]
    queries += ["".join(rng.choices(characters, k=4)) for _ in range(40)]
    seconds = []
    for query in queries:
        began = time.perf_counter()
        store.search(query, 10)
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.010


def test_threads_that_share_a_collection_each_get_their_own_documents():
    names = [f"name{i}" for i in range(50)]
    store = DocumentStore.from_documents([(name, name, f"About {name}.") for name in names])

    def found(name):
        return [document.id for document in store.search(name)], store.get(name).id

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(found, names * 20)) == [([name], name) for name in names * 20]


def test_what_a_killed_process_left_does_not_hinder_the_next_with_its_number(tmp_path):
    path = tmp_path / "collection"
    DocumentStore.from_documents([("old", "Old", "unfinished")], path).close()
    path.rename(f"{path}.{os.getpid()}.unfinished")
    (tmp_path / f"{path.name}.{os.getpid()}.unfinished-journal").write_bytes(b"leftover")
    store = DocumentStore.from_documents(DOCUMENTS, path)
    assert len(store) == len(DOCUMENTS)
    assert [file.name for file in tmp_path.iterdir()] == ["collection"]
