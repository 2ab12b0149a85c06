"""Who holds which page of the cache, and which pages can be found again by their content.

A page is in one of three states:

    referenced   held by one or more requests (a shared prefix is held by several)
    cached       held by none, but named: a later request with the same prefix takes it back
    blank        held by none and unnamed

Cached and blank pages are both free to allocate, blank ones first, then cached ones from the least
recently used. Page 0 belongs to padding and is never handed out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PagePool:
    """Allocates pages, counts references, and keeps the prefix cache.

    Args:
        num_pages: Pages in the device cache, page 0 included.
    """

    def __init__(self, num_pages: int):
        assert num_pages >= 2
        self.num_pages = num_pages
        self._references = [0] * num_pages
        self._name_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_pages))

    @property
    def num_free(self) -> int:
        """Pages that allocate can still hand out."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Pages there are to hand out."""
        return self.num_pages - 1

    def allocate(self, count: int) -> list[int] | None:
        """Takes blank pages, then the least recently used cached ones; None if too few are free."""
        if count > len(self._free):
            return None
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._forget(page)
            self._references[page] = 1
        return pages

    def take(self, count: int) -> list[int]:
        """Like allocate, where enough pages are known to be free."""
        pages = self.allocate(count)
        assert pages is not None, f"{count} pages are wanted, and {self.num_free} free"
        return pages

    def knows(self, name: bytes) -> bool:
        """Whether a page of this name can be shared."""
        return name in self._page_of

    def match(self, names: Iterable[bytes]) -> list[int]:
        """Pages of the longest known prefix of a chain of names. Takes no reference."""
        pages = []
        for name in names:
            page = self._page_of.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Takes one more reference to each page."""
        for page in pages:
            self._free.pop(page, None)
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Gives a reference back. Of pages then unreferenced, the list's last is reused first."""
        for page in reversed(pages):
            self._references[page] -= 1
            assert self._references[page] >= 0, f"page {page} released twice"
            if self._references[page] == 0:
                self._free[page] = None
                if page not in self._name_of:
                    self._free.move_to_end(page, last=False)

    def publish(self, page: int, name: bytes) -> None:
        """Names a full page so that match finds it. The first page of a name keeps it."""
        if name not in self._page_of and page not in self._name_of:
            self._page_of[name] = page
            self._name_of[page] = name

    def _forget(self, page: int) -> None:
        name = self._name_of.pop(page, None)
        if name is not None:
            del self._page_of[name]

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Asserts that the books agree with the page lists of all holders."""
        counted = [0] * self.num_pages
        for pages in holders:
            for page in pages:
                counted[page] += 1
        assert counted == self._references
        assert set(self._free) == {p for p in range(1, self.num_pages) if counted[p] == 0}
        assert {n: p for p, n in self._name_of.items()} == self._page_of
