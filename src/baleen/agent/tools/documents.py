"""A collection of documents that can be searched: SQLite's full-text index, in memory or in one file.

Ranking is BM25 with the title weighing more than the text, over word stems. Chinese, Japanese and Korean text has no
spaces: every such character is indexed as a word, and a query's run of them is searched as pairs of neighbours. A query
is only ever read as words and quoted phrases; whatever else is in it (operators, brackets, column names) means nothing.

    store = DocumentStore.from_documents([("whale", "Whales", "Baleen lets the sea through.")])
    store.search("what does baleen do?", limit=3)
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

_CJK = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CJK_CHARACTER = re.compile(f"([{_CJK}\U00020000-\U0003ffff])")
_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r'["“”„«»「」]([^"“”„«»「」]+)["“”„«»「」]')
_OPERATORS = frozenset({"AND", "OR", "NOT", "NEAR"})
_TITLE_WEIGHT = 4.0
_POSTINGS = 2000
"""A query's rarest words are searched, as many as stand in this many documents together, and at least one: common words
tell documents apart least and cost most. So the time of a query hardly grows with the collection."""
_MOST_TERMS = 32
DEFAULT_SOURCE = "documents"

_SCHEMA = """
CREATE TABLE documents (number INTEGER PRIMARY KEY, source TEXT, id TEXT, title TEXT, text TEXT, UNIQUE (id, source));
CREATE VIRTUAL TABLE words USING fts5 (title, text, content='', tokenize="porter unicode61 remove_diacritics 2");
"""


@dataclass(frozen=True)
class Document:
    """One document. `id` is a URL or any other name, different for each document of a source."""

    id: str
    title: str
    text: str
    source: str = DEFAULT_SOURCE


class DocumentStore:
    """Read-only once made; any number of episodes and threads may share it. Use `from_documents` or `open`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # SQLite locks a connection, but Python's cache may give two threads the same prepared statement.
        self._one_at_a_time = threading.Lock()
        rows = connection.execute("SELECT source, min(number), max(number) FROM documents GROUP BY source ORDER BY 2")
        # A source's documents are added one after the other, so that a range of numbers is a source.
        self._ranges: dict[str, tuple[int, int]] = {source: (first, last) for source, first, last in rows}
        self.sources = tuple(self._ranges)
        """The sources' names, in the order in which they were given."""
        self._count = sum(last - first + 1 for first, last in self._ranges.values())
        self._spread = lru_cache(maxsize=1 << 16)(self._documents_with)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[tuple[str, str, str]] | Mapping[str, Iterable[tuple[str, str, str]]],
        path: str | Path | None = None,
    ) -> DocumentStore:
        """Indexes (id, title, text) triples; a mapping gives the triples of each named source. With `path` the
        collection is written there, whole or not at all. Raises `ValueError` when an id comes twice in a source."""
        sources = documents if isinstance(documents, Mapping) else {DEFAULT_SOURCE: documents}
        if path is None:
            connection = sqlite3.connect(":memory:", check_same_thread=False)
            _fill(connection, sources)
            return cls(connection)
        unfinished = Path(f"{path}.{os.getpid()}.unfinished")
        for leftover in (unfinished, Path(f"{unfinished}-journal")):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        try:
            connection = sqlite3.connect(unfinished)
            try:
                _fill(connection, sources)
            finally:
                connection.close()
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> DocumentStore:
        """A collection that was written before. Raises `FileNotFoundError`, and `ValueError` for any other file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no document collection at {path}; make it with DocumentStore.from_documents")
        connection = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        try:
            return cls(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ValueError(f"{path} is no document collection: {error}") from error

    def close(self) -> None:
        """Closes the database; nothing can be searched after it."""
        with self._one_at_a_time:
            self._connection.close()

    def __len__(self) -> int:
        return self._count

    def search(self, query: str, limit: int = 10, source: str | None = None) -> list[Document]:
        """The best documents for `query`, best first; equal ones in the order in which they were added. Quoted phrases
        must occur, unless no document has them. Raises `ValueError` for an unknown source."""
        self._check_source(source)
        phrases, words = _terms(query)
        required = [f"({' AND '.join(phrases)})"] if phrases else []
        rare = self._rare(words)
        attempts = [" AND ".join([*required, f"({' OR '.join([*rare, *phrases])})"])] if required else []
        attempts.append(" OR ".join([*rare, *phrases]))
        for expression in attempts:
            if expression and (found := self._matching(expression, limit, source)):
                return found
        return []

    def get(self, id: str, source: str | None = None) -> Document | None:
        """The document with this id, in `source` or in the first source that has it."""
        rows = self._rows(
            "SELECT id, title, text, source FROM documents WHERE id = ?1 AND source = coalesce(?2, source) "
            "ORDER BY number LIMIT 1",
            (id, source),
        )
        return Document(*rows[0]) if rows else None

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with self._one_at_a_time:
            return self._connection.execute(query, values).fetchall()

    def _matching(self, expression: str, limit: int, source: str | None) -> list[Document]:
        numbers = (1, self._count) if source is None else self._ranges[source]
        # The text is fetched for the winners only: it is most of the file.
        rows = self._rows(
            f"""
            SELECT d.id, d.title, d.text, d.source FROM (
                SELECT words.rowid AS number, bm25(words, {_TITLE_WEIGHT}, 1.0) AS score FROM words
                WHERE words MATCH ? AND words.rowid BETWEEN ? AND ? ORDER BY score, number LIMIT ?
            ) AS best JOIN documents AS d USING (number) ORDER BY best.score, number
            """,
            (expression, *numbers, limit),
        )
        return [Document(*row) for row in rows]

    def _rare(self, words: list[str]) -> list[str]:
        """The words that occur, without those that are too common."""
        spread = {word: count for word in words if (count := self._spread(word))}
        rarest = sorted(spread, key=lambda word: spread[word])
        together = accumulate(spread[word] for word in rarest)
        return [word for word, total in zip(rarest, together, strict=True) if total <= _POSTINGS] or rarest[:1]

    def _documents_with(self, word: str) -> int:
        return int(self._rows("SELECT count(*) FROM words WHERE words MATCH ?", (word,))[0][0])

    def _check_source(self, source: str | None) -> None:
        if source is not None and source not in self.sources:
            raise ValueError(f"no source {source!r}; sources: {', '.join(self.sources)}")


def query_words(query: str) -> list[str]:
    """The words of a query, lower case, as a reader sees them: for marking passages."""
    words = [w for w in _WORD.findall(_spaced(query)) if w not in _OPERATORS]
    return list(dict.fromkeys(word.lower() for word in words))[:_MOST_TERMS]


def _fill(connection: sqlite3.Connection, sources: Mapping[str, Iterable[tuple[str, str, str]]]) -> None:
    connection.executescript(_SCHEMA)
    add_document = "INSERT INTO documents (source, id, title, text) VALUES (?, ?, ?, ?)"
    add_words = "INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)"
    with connection:
        for source, documents in sources.items():
            for id, title, text in documents:
                # SQLite stores no half of a surrogate pair.
                title, text = (part.encode("utf-8", "replace").decode() for part in (title, text))
                try:
                    number = connection.execute(add_document, (source, id, title, text)).lastrowid
                except sqlite3.IntegrityError as error:
                    raise ValueError(f"source {source!r} has two documents with the id {id!r}") from error
                connection.execute(add_words, (number, _spaced(title), _spaced(text)))
        connection.execute("INSERT INTO words(words) VALUES ('optimize')")


def _terms(query: str) -> tuple[list[str], list[str]]:
    """(quoted phrases, words) as FTS5 strings; nothing but letters, digits and spaces is inside their quotes."""
    phrases = [tokens for quoted in _QUOTED.findall(query) if len(tokens := _WORD.findall(_spaced(quoted))) > 1]
    words: list[str] = []
    for run in _WORD.findall(query):
        if run in _OPERATORS:
            continue
        tokens = _spaced(run).split()
        cjk = [bool(_CJK_CHARACTER.match(token)) for token in tokens]
        for i, token in enumerate(tokens):
            if not cjk[i]:
                words.append(f'"{token}"')
            elif i + 1 < len(tokens) and cjk[i + 1]:
                words.append(f'"{token} {tokens[i + 1]}"')
            elif i == 0 or not cjk[i - 1]:
                words.append(f'"{token}"')
    quoted = [f'"{" ".join(tokens)}"' for tokens in phrases]
    return list(dict.fromkeys(quoted))[:_MOST_TERMS], list(dict.fromkeys(words))[:_MOST_TERMS]


def _spaced(text: str) -> str:
    """`text` with every Chinese, Japanese or Korean character standing alone."""
    return _CJK_CHARACTER.sub(r" \1 ", text)
