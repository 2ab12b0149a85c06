import jax.numpy as jnp
import pytest

from rtpjax import sharding
from rtpjax.engine import kv_cache
from rtpjax.models import CacheSpec

SPECS = (CacheSpec(num_kv_heads=2, head_dim=8), CacheSpec(num_kv_heads=4, head_dim=16, window=8))


def test_bytes_of_a_page_are_those_of_its_arrays():
    for dtype in (jnp.float32, jnp.bfloat16):
        caches = kv_cache.allocate(SPECS, 5, 16, dtype, sharding.make_mesh(1))
        arrays = [array for cache in caches for array in cache]
        assert sum(array.nbytes for array in arrays) == 5 * kv_cache.page_bytes(SPECS, 16, dtype)
        assert {array.dtype for array in arrays} == {jnp.dtype(dtype)}


def test_caches_have_an_array_each_with_its_heads_split_over_the_devices():
    caches = kv_cache.allocate(SPECS, 3, 4, jnp.float32, sharding.make_mesh(2))
    assert [cache.k_pages.shape for cache in caches] == [(3, 4, 2, 8), (3, 4, 4, 16)]
    assert caches[1].v_pages.addressable_shards[1].data.shape == (3, 4, 2, 16)
    # Donation needs buffers of their own.
    assert len({array.unsafe_buffer_pointer() for array in _shards(caches)}) == 8
    assert not any(array.any() for cache in caches for array in cache)


def _shards(caches):
    return [s.data for cache in caches for array in cache for s in array.addressable_shards]


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_pages_for(tokens, pages):
    assert kv_cache.pages_for(tokens, 16) == pages
