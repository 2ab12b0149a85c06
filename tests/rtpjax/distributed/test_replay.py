"""Device calls are all that a follower needs: played again from frames they choose the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from rtpjax.distributed.channel import decode, encode
from rtpjax.engine import runner as runner_module
from rtpjax.engine.device_call import DeviceCall
from rtpjax.engine.runner import Runner
from rtpjax.engine.wants import VARIANTS, variants_of
from tests.rtpjax.engine import tiny


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """With the variants that a GPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "variants_of", lambda _: variants_of("gpu"))
        yield tiny.make_runner(dataclasses.replace(tiny.CONFIG, max_num_seqs=2))


def test_calls_played_again_choose_the_same(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[list[bytes]] = []
    chosen: list[np.ndarray] = []
    execute = runner.execute

    def recorded(call: DeviceCall):
        frames.append(encode(call))
        made = execute(call)
        if made is not None:
            chosen.append(np.asarray(made))
        return made

    mask = np.zeros(tiny.MODEL.vocab_size // 32, np.int32)
    mask[0] = 0b11100000  # tokens 5, 6 and 7
    choose = runner.choose
    monkeypatch.setattr(runner, "choose", lambda forwarded, _: choose(forwarded, {0: mask}))
    monkeypatch.setattr(runner, "execute", recorded)
    runner.reset()
    prompts = [tiny.prompt(length, seed=length) for length in (3, 40, 17, 8, 21, 30)]
    sampling = [  # the first runs beside one of the others at a time, and alone in the end
        tiny.params(max_tokens=60),
        tiny.params(max_tokens=6, temperature=1.0, seed=7),
        tiny.params(max_tokens=6, temperature=1.0, top_p=0.9, seed=8),
        tiny.params(max_tokens=6, logit_bias=((50, 20.0),), frequency_penalty=0.5),
        tiny.params(max_tokens=6, bad_words=((60,), (61, 62)), min_tokens=4),
        tiny.params(max_tokens=6, allowed_token_ids=(10, 11, 12)),
    ]
    tiny.make_engine(runner).generate(prompts, sampling)
    monkeypatch.undo()
    assert {int(sampled[0, 0]) for sampled in chosen} <= {5, 6, 7}

    names = {decode(f).name for f in frames}
    assert names == {"reset", "fill_slot", "fill_masks", "forward", "choose"}
    choices = [runner.choices[call.number] for call in map(decode, frames) if call.name == "choose"]
    assert {wants for _, wants in choices} == set(VARIANTS.values())
    steps = iter(chosen)
    for call in map(decode, frames):
        made = runner.execute(call)
        if made is not None:
            np.testing.assert_array_equal(np.asarray(made), next(steps))
    assert next(steps, None) is None
