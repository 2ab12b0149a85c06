import numpy as np
import pytest

from bench.cache_quality import Answers, compare


def test_figures_by_hand():
    plain = Answers(np.log([0.5, 0.25]), [[1, 2, 3, 4], [5, 6, 7, 8]])
    other = Answers(np.log([0.5, 0.5]), [[1, 2, 9, 4], [5, 6, 7, 8]])
    itself = compare("float", plain, plain)
    assert (itself.mean_off, itself.max_off, itself.agreement) == (0, 0, 1)
    assert itself.perplexity == pytest.approx(8**0.5)
    found = compare("int8", other, plain)
    assert (found.num_tokens, found.perplexity) == (2, pytest.approx(2))
    assert (found.mean_off, found.max_off) == pytest.approx((np.log(2) / 2, np.log(2)))
    assert found.agreement == 6 / 8  # what follows the first difference does not count
