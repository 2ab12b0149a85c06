import jax.numpy as jnp
import numpy as np

from rtpjax.models import Caches, PagedCache, StepInputs
from rtpjax.models.cache import CacheLayout, Place
from tests.golden import cases
from tests.rtpjax.models.paged_run import PagedRun, golden_model


def test_a_layers_pages_follow_those_of_the_layers_before_but_padding_stays_in_page_0():
    ints = [
        jnp.array(x, jnp.int32)
        for x in (
            [0, 0],
            [[17, 2], [9, 3]],
            [[[4, 0]], [[2, 0]]],
            [0, 1],
            [2],
        )
    ]
    inputs = StepInputs(*ints, kind="extend")
    arrays = tuple(PagedCache(*2 * [jnp.zeros((n, 4, 1, 1))]) for n in (5, 20))
    caches = Caches(arrays, CacheLayout((Place(0, 0, 0), Place(1, 1, 1)), (5, 10)))
    view = caches.layer(1, inputs)
    assert view.slots.tolist() == [49, 3]
    assert view.page_table.tolist() == [[12, 10]]
    assert caches.layer(0, inputs).slots.tolist() == [17, 2]
    written = caches.updated(1, arrays[1]._replace(k_pages=jnp.ones((20, 4, 1, 1))))
    assert written.arrays[0] is arrays[0]
    assert written.layer(1, inputs).pages.k_pages.all()


def test_padding_is_written_nowhere():
    """Steps of PagedRun have padding tokens; the first page of each layer keeps its garbage."""
    run = PagedRun(golden_model("llama"), num_rows=1, max_len=8)
    run.step([cases.prompt("llama")[:6]], "extend")
    run.step([cases.prompt("llama")[6:7]], "decode")
    (cache,) = run.caches.arrays
    num_layers = cases.CASES["llama"].config["num_hidden_layers"]
    assert num_layers > 1
    for pages in (cache.k_pages, cache.v_pages):
        layers = np.asarray(pages).reshape(num_layers, -1, *pages.shape[1:])
        assert np.isnan(layers[:, 0]).all()
        assert (~np.isnan(layers).all(axis=(2, 3, 4))).sum(axis=1).tolist() == num_layers * [2]
