from rtpjax.engine.request import GenerationRequest
from rtpjax.engine.sequence import Sequence


def sequence(prompt, *, salt="", max_tokens=10) -> Sequence:
    request = GenerationRequest("r", tuple(prompt), cache_salt=salt)
    return Sequence(request, order=(0, 0), max_tokens=max_tokens)


def test_counts_of_tokens_wanted_known_and_in_flight():
    s = sequence(range(5), max_tokens=2)
    assert (s.num_prompt_tokens, s.num_tokens, s.num_wanted, s.num_output_tokens) == (5, 5, 5, 0)
    s.num_computed = 3
    assert s.num_wanted == 2
    s.num_computed, s.num_sampled = 5, 1  # the first output is in flight
    assert (s.num_tokens, s.num_wanted, s.num_output_tokens) == (6, 1, 0)
    s.token_ids.append(9)
    assert (s.num_tokens, s.num_wanted, s.num_output_tokens) == (6, 1, 1)
    s.num_computed, s.num_sampled = 6, 2  # all that may be sampled is sampled or in flight
    assert s.num_wanted == 0


def test_names_cover_all_tokens_before_the_page_and_the_salt():
    names = sequence(range(12)).names(4)
    assert len(set(names)) == 3
    assert sequence([*range(8), 99, 9, 10, 11]).names(4)[:2] == names[:2]
    assert sequence([*range(8), 99, 9, 10, 11]).names(4)[2] != names[2]
    other_start = sequence([99, *range(1, 12)]).names(4)
    assert not set(other_start) & set(names)
    assert not set(sequence(range(12), salt="x").names(4)) & set(names)


def test_only_full_pages_of_known_tokens_have_names():
    s = sequence(range(7))
    assert len(s.names(4)) == 1
    s.num_sampled = 1  # in flight
    assert len(s.names(4)) == 1
    s.token_ids.append(7)
    assert s.names(4) == sequence(range(8)).names(4)


def test_equal_tokens_repeated_do_not_make_equal_names():
    names = sequence([5] * 12).names(4)
    assert len(set(names)) == 3
