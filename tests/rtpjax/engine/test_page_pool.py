from hypothesis import given, settings
from hypothesis import strategies as st

from rtpjax.engine.page_pool import PagePool
from tests.examples import num_examples


def name(i: int) -> bytes:
    return b"name %d" % i


def test_pages_are_numbered_from_one_and_run_out():
    pool = PagePool(4)
    assert (pool.capacity, pool.num_free) == (3, 3)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    assert pool.allocate(1) is None
    assert pool.allocate(0) == []


def test_too_few_pages_take_none():
    pool = PagePool(4)
    pool.allocate(2)
    assert pool.allocate(2) is None
    assert pool.num_free == 1


def test_match_ends_at_the_first_unknown_name():
    pool = PagePool(6)
    pages = pool.allocate(4)
    for i in (0, 1, 3):
        pool.publish(pages[i], name(i))
    assert pool.match(map(name, range(4))) == pages[:2]
    assert pool.match([name(1)]) == [pages[1]]


def test_blank_pages_go_first_then_the_least_recently_used_and_of_one_request_its_end():
    pool = PagePool(7)
    first, second = pool.allocate(3), pool.allocate(2)
    for i, page in enumerate([*first[:2], *second]):
        pool.publish(page, name(i))
    pool.release(first)
    pool.release(second)
    blank = [first[2], 6]  # the last page freed unnamed is the first one out
    named = [first[1], first[0], second[1], second[0]]
    assert [pool.allocate(1)[0] for _ in range(6)] == blank + named


def test_a_page_taken_back_is_recently_used():
    pool = PagePool(4)
    a, b, _ = pool.allocate(3)
    pool.publish(a, name(0))
    pool.publish(b, name(1))
    pool.release([a])
    pool.release([b])
    pool.share([a])
    assert pool.num_free == 1
    pool.release([a])
    assert pool.allocate(1) == [b]
    assert pool.match([name(1)]) == []
    assert pool.match([name(0)]) == [a]


def test_the_first_page_of_a_name_keeps_it():
    pool = PagePool(4)
    a, b, c = pool.allocate(3)
    pool.publish(a, name(0))
    pool.publish(b, name(0))
    pool.publish(a, name(1))
    assert pool.match([name(0)]) == [a]
    assert pool.match([name(1)]) == []
    pool.check([[a, b, c]])


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["allocate", "share", "release", "publish"]),
        st.integers(0, 7),
        st.integers(0, 7),
    ),
    max_size=60,
)


@settings(max_examples=num_examples(200))
@given(num_pages=st.integers(2, 8), operations=OPERATIONS)
def test_random_operations_keep_the_books(num_pages, operations):
    pool, holders, names = PagePool(num_pages), [], {}
    for operation, x, y in operations:
        held = {page for pages in holders for page in pages}
        if operation == "allocate":
            pages = pool.allocate(x)
            assert (pages is None) == (x > num_pages - 1 - len(held))
            if pages is not None:
                assert len(set(pages)) == x
                assert not held & set(pages)
                assert 0 not in pages
                named_free = {p for p in names.values() if p not in held}
                blank = num_pages - 1 - len(held) - len(named_free)
                assert len(named_free & set(pages)) == max(0, x - blank)
                names = {n: p for n, p in names.items() if p not in pages}
                holders.append(pages)
        elif operation == "share":
            pages = pool.match([name(x), name(y)])
            known = [names.get(x), names.get(y)]
            assert pages == known[: known.index(None) if None in known else 2]
            pool.share(pages)
            holders.append(pages)
        elif operation == "release" and holders:
            pool.release(holders.pop(x % len(holders)))
        elif operation == "publish" and held:
            page = sorted(held)[x % len(held)]
            pool.publish(page, name(y))
            if y not in names and page not in names.values():
                names[y] = page
        pool.check(holders)
        assert pool.num_free == num_pages - 1 - len({p for pages in holders for p in pages})
        for n in range(8):
            assert pool.match([name(n)]) == ([names[n]] if n in names else [])
