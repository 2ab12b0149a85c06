import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.paged_tiles import is_addressable
from rtpjax import sharding
from rtpjax.engine import kv_cache
from rtpjax.engine.cache_groups import pages_for
from rtpjax.models import Pages

SPECS = (Pages(2, 8, 8), Pages(4, 16, 16, window=8))


def test_bytes_of_a_page_are_those_of_its_arrays():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn):
        caches = kv_cache.allocate(SPECS, [5, 5], 16, dtype, sharding.make_mesh(1))
        arrays = jax.tree.leaves(caches)
        assert sum(array.nbytes for array in arrays) == 5 * kv_cache.page_bytes(SPECS, 16, dtype)
        stored = jnp.uint8 if dtype == jnp.float8_e4m3fn else dtype  # on the CPU
        assert {cache.k_pages.dtype for cache in caches.arrays} == {jnp.dtype(stored)}
    # By hand: 16 tokens of 2 * (2 * 8 + 4 * 16) numbers, and a float32 for each of 2 * 6 heads.
    assert kv_cache.page_bytes(SPECS, 16, jnp.int8) == 16 * 160 + 12 * 4
    assert kv_cache.page_bytes(SPECS, 16, jnp.bfloat16) == 16 * 160 * 2


def test_only_quantized_caches_have_scales_and_they_are_split_like_the_heads():
    mesh = sharding.make_mesh(2)
    quantized, plain = (
        kv_cache.allocate(SPECS, [3, 3], 4, d, mesh) for d in (jnp.int8, jnp.bfloat16)
    )
    assert (plain.arrays[0].k_scales, plain.arrays[0].v_scales) == (None, None)
    assert quantized.arrays[1].v_scales.dtype == jnp.float32
    shards = quantized.arrays[1].v_scales.addressable_shards
    assert [s.data.shape for s in shards] == [(3, 2), (3, 2)]
    assert len({x.unsafe_buffer_pointer() for x in _shards(quantized)}) == 16


def test_layers_that_keep_the_same_share_a_cache_with_its_heads_split_over_the_devices():
    specs = (SPECS[0], SPECS[1], SPECS[0])  # neighbours or not
    caches = kv_cache.allocate(specs, [3, 5], 4, jnp.float32, sharding.make_mesh(2))
    assert [cache.k_pages.shape for cache in caches.arrays] == [(6, 4, 2, 8), (5, 4, 4, 16)]
    assert caches.arrays[1].v_pages.addressable_shards[1].data.shape == (5, 4, 2, 16)
    # Donation needs buffers of their own.
    assert len({array.unsafe_buffer_pointer() for array in _shards(caches)}) == 8
    assert not any(array.any() for array in jax.tree.leaves(caches))
    assert [tuple(place) for place in caches.layout.places] == [(0, 0, 0), (1, 1, 0), (0, 0, 1)]


def test_keys_and_values_may_have_different_widths():
    caches = kv_cache.allocate([Pages(2, 24, 16)], [3], 4, jnp.float32, sharding.make_mesh(1))
    (cache,) = caches.arrays
    assert (cache.k_pages.shape, cache.v_pages.shape) == ((3, 4, 2, 24), (3, 4, 2, 16))
    assert kv_cache.token_bytes([Pages(2, 24, 16)], jnp.float32) == 2 * 40 * 4


@pytest.mark.parametrize(
    ("dtype", "pages", "layers"),
    [
        (jnp.int8, 2**16, [5]),  # 5/8 of 2**31 numbers
        (jnp.int8, 2**17, [3, 2]),  # 10/8: Pallas would count them with 32 bits, and cannot
        (jnp.int8, 3 * 2**16, [2, 2, 1]),  # 15/8
        (jnp.int8, 2**18, [5]),  # over 4 GiB it counts with 64 bits
        (jnp.bfloat16, 2**17, [5]),
    ],
)
def test_layers_share_as_much_as_kernels_can_address(dtype, pages, layers):
    specs = 5 * [Pages(2, 64, 64)]
    caches = kv_cache.declare(specs, [pages], 32, dtype, sharding.make_mesh(1))
    assert [len(cache.k_pages) // pages for cache in caches.arrays] == layers
    for cache in caches.arrays:
        assert is_addressable(cache.k_pages.size, cache.k_pages.dtype)


def _shards(caches):
    return [s.data for array in jax.tree.leaves(caches) for s in array.addressable_shards]


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_pages_for(tokens, pages):
    assert pages_for(tokens, 16) == pages
