"""Device calls over real sockets, and who is let in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from rtpjax.distributed.channel import Guest, Host, Invitation, Publisher, decode, encode, receive
from rtpjax.engine.device_call import DeviceCall
from rtpjax.errors import ConfigError

CALLS = [
    DeviceCall("reset"),
    DeviceCall("fill_slot", 3, (np.arange(5, dtype=np.int32), np.array([0.5, -1e30], np.float32))),
    DeviceCall("choose", 2, (np.array([True, False]),)),
    DeviceCall("fill_masks", 0, (np.zeros((0, 4), np.int32), np.arange(6).reshape(2, 3).T)),
]


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host("127.0.0.1")
    yield host
    host.close()


def assert_same(found: DeviceCall, expected: DeviceCall) -> None:
    assert found[:2] == expected[:2]
    assert len(found.arrays) == len(expected.arrays)
    for a, b in zip(found.arrays, expected.arrays, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_frames_hold_the_call(call: DeviceCall) -> None:
    assert_same(decode(encode(call)), call)


def test_every_follower_gets_every_call_in_order(host: Host) -> None:
    publisher = Publisher(host.steps, 2)
    guests = [Guest(Invitation.decode(host.invitation.encode()), i) for i in (1, 2)]
    publisher.wait_for_followers(20)
    for call in CALLS:
        publisher.publish(call)
    publisher.stop()
    for guest in guests:
        found = [call for call in receive(guest.steps, 5000) if call is not None]
        assert len(found) == len(CALLS) == publisher.num_published
        for a, b in zip(found, CALLS, strict=True):
            assert_same(a, b)
        guest.close()


def test_idle_is_told(host: Host) -> None:
    publisher = Publisher(host.steps, 1)
    guest = Guest(host.invitation, 1)
    publisher.wait_for_followers(20)
    assert next(receive(guest.steps, 1)) is None
    guest.close()


@pytest.mark.parametrize("key", ["server_key", "public_key"])
def test_a_stranger_is_not_let_in(host: Host, key: str) -> None:
    public, secret = (k.decode() for k in zmq.curve_keypair())
    changes = {"server_key": public} if key == "server_key" else {
        "public_key": public, "secret_key": secret
    }  # fmt: skip
    stranger = Guest(dataclasses.replace(host.invitation, **changes), 1)
    with pytest.raises(ConfigError, match=r"process 1 did not connect to tcp://127\.0\.0\.1:"):
        Publisher(host.steps, 1).wait_for_followers(1)
    stranger.close()


def test_only_an_own_address_is_listened_on() -> None:
    with pytest.raises(ConfigError, match="COORDINATOR_ADDRESS must name an address of the host"):
        Host("192.0.2.1")
