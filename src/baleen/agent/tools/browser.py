"""`search`, `open` and `find` over a collection of documents, with the argument names of V3.2's search agent.

Every search and every opened document is a page with a number, the cursor; a call that names none means the page that
was seen last. A page of results has a numbered link to each document.

    browser = DocumentBrowser(store);  Toolbox(browser.tools)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator

from baleen.agent.tools.documents import Document, DocumentStore, query_words
from baleen.agent.tools.pages import Link, Page, with_links
from baleen.agent.tools.signature import Tool

# What is not given is -1 or empty, as in the original; models write null and "-1" as well.
_NONE_IS_MINUS_ONE = BeforeValidator(lambda value: -1 if value in (None, "", "-1") else value)
_NONE_IS_EMPTY = BeforeValidator(lambda value: "" if value is None else value)
Number = Annotated[int, _NONE_IS_MINUS_ONE]

_MOST_RESULTS = 50
_MOST_LINES = 400
_SNIPPET = 240
_LINES_ABOVE = 4
"""How many lines above the passage that was searched a document is opened."""


class DocumentBrowser:
    """The pages that one episode has seen. `num_lines` is the height of the window, `width` that of a line.

    The functions may run in threads, so that a toolbox can end the wait for a slow one; its page may still come later.
    """

    def __init__(self, store: DocumentStore, *, num_lines: int = 40, width: int = 80) -> None:
        self._store, self._num_lines, self._width = store, num_lines, width
        self._pages: list[Page] = []
        self._seen = -1
        self._adding = threading.Lock()

    @property
    def tools(self) -> dict[str, Tool]:
        """The three functions under their names."""
        return {"search": self.search, "open": self.open, "find": self.find}

    def search(
        self,
        query: str,
        topn: Annotated[int, "how many results"] = 10,
        source: Annotated[str, "one of the collection's sources; all if empty", _NONE_IS_EMPTY] = "",
    ) -> str:
        """Searches documents and shows the best results."""
        words = tuple(query_words(query))
        if not words:
            raise ValueError("query has no words; give the words to search for")
        found = self._store.search(query, max(1, min(topn, _MOST_RESULTS)), source or None)
        if not found:
            return f"No results for {query!r}."
        blocks = [f"【{i}†{_one_line(d.title)}】 ({d.id})\n{self._snippet(d, words)}" for i, d in enumerate(found)]
        links = [Link(document.id, document.source, words) for document in found]
        page = Page(f"Results for {_one_line(query)}", "\n".join(blocks), links=links, width=self._width)
        return self._show(page, 0, len(page.lines))

    def open(
        self,
        id: Annotated[int | str, "number of a link on the page, or a document's id", _NONE_IS_MINUS_ONE] = -1,
        cursor: Annotated[Number, "number of a page seen before; -1 for the last"] = -1,
        loc: Annotated[Number, "first line to show"] = -1,
        num_lines: Annotated[Number, "how many lines to show"] = -1,
    ) -> str:
        """Opens a link or a document; without id: shows other lines of a page."""
        lines = min(num_lines if num_lines > 0 else self._num_lines, _MOST_LINES)
        if id == -1:
            self._seen, page = self._page(cursor)
            return page.shown(self._seen, max(0, loc), lines)
        document, words = self._followed(id, cursor)
        page = self._document_page(document)
        if loc < 0:
            best = page.best_line(words)
            loc = 0 if best < lines else best - min(_LINES_ABOVE, lines - 1)
        return self._show(page, loc, lines)

    def find(
        self, pattern: str, cursor: Annotated[Number, "number of a page seen before; -1 for the last"] = -1
    ) -> str:
        """Finds the exact text on a page."""
        number, page = self._page(cursor)
        return page.found(pattern, number)

    def _followed(self, target: int | str, cursor: int) -> tuple[Document, tuple[str, ...]]:
        """The document that a link's number or an id means, and the words for which it was found."""
        if isinstance(target, str):
            document = self._store.get(target)
            if document is not None:
                return document, ()
            if not target.isdecimal():
                raise ValueError(f"no document has the id {target!r}")
            target = int(target)
        number, page = self._page(cursor)
        if not 0 <= target < len(page.links):
            raise ValueError(f"page {number} has {_counted(len(page.links))}, not {target}")
        link = page.links[target]
        document = self._store.get(link.id, link.source)
        assert document is not None, "links are made for documents of the store only"
        return document, link.words

    def _page(self, cursor: int) -> tuple[int, Page]:
        if not self._pages:
            raise ValueError("no page is open yet; search first, or open a document by its id")
        number = self._seen if cursor < 0 else cursor
        if number >= len(self._pages):
            raise ValueError(f"cursor {number} does not exist; pages 0 to {len(self._pages) - 1} do")
        return number, self._pages[number]

    def _show(self, page: Page, loc: int, num_lines: int) -> str:
        with self._adding:
            text = page.shown(len(self._pages), loc, num_lines)
            self._pages.append(page)
            self._seen = len(self._pages) - 1
        return text

    def _document_page(self, document: Document) -> Page:
        text, links = with_links(document.text, self._linked(document))
        return Page(document.title, text, document.id, document.source, links, self._width)

    def _linked(self, document: Document) -> Callable[[str], Link | None]:
        def known(address: str) -> Link | None:
            for name in (address, address.split("#", 1)[0]):
                for source in (document.source, None):
                    if name and (found := self._store.get(name, source)):
                        return Link(found.id, found.source)
            return None

        return known

    def _snippet(self, document: Document, words: tuple[str, ...]) -> str:
        page = Page(document.title, document.text, width=self._width)
        best = page.best_line(words)
        return _one_line(" ".join(page.lines[best : best + 4]))[:_SNIPPET]


def _counted(links: int) -> str:
    return "no links" if not links else "link 0" if links == 1 else f"links 0 to {links - 1}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
