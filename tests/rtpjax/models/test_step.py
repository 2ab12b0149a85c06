import jax.numpy as jnp
import numpy as np

from rtpjax.models import StepInputs
from tests.golden import cases
from tests.rtpjax.models.paged_run import PagedRun, golden_model


def test_a_layers_pages_follow_those_of_the_layers_before_but_padding_stays_in_page_0():
    ints = [jnp.array(x, jnp.int32) for x in ([0, 0], [9, 3], [[2, 0]], [0, 1], [2])]
    inputs = StepInputs(*ints, kind="extend").from_page(10, page_size=4)
    assert inputs.slots.tolist() == [49, 3]
    assert inputs.page_table.tolist() == [[12, 10]]


def test_padding_is_written_nowhere():
    """Steps of PagedRun have padding tokens; the first page of each layer keeps its garbage."""
    run = PagedRun(golden_model("llama"), num_rows=1, max_len=8)
    run.step([cases.prompt("llama")[:6]], "extend")
    run.step([cases.prompt("llama")[6:7]], "decode")
    (cache,) = run.caches
    num_layers = cases.CASES["llama"].config["num_hidden_layers"]
    assert num_layers > 1
    for pages in (cache.k_pages, cache.v_pages):
        layers = np.asarray(pages).reshape(num_layers, -1, *pages.shape[1:])
        assert np.isnan(layers[:, 0]).all()
        assert (~np.isnan(layers).all(axis=(2, 3, 4))).sum(axis=1).tolist() == num_layers * [2]
