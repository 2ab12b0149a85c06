"""What the leader tells the followers: device calls over ZeroMQ, encrypted both ways.

A message is a JSON header and the arrays as they lie in memory, one frame each; nothing is
unpickled. The keys are made anew at each start and reach the followers through JAX's runtime (an
Invitation), so a stranger can neither listen nor feed a follower.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Iterator

import numpy as np
import zmq
from zmq.auth.thread import ThreadAuthenticator

from rtpjax.engine.device_call import DeviceCall
from rtpjax.errors import ConfigError

STOP = "stop"  # the name of the last message
_FLUSH_MS = 2000  # how long closing a socket may take to send what is queued


@dataclasses.dataclass(frozen=True)
class Invitation:
    """What a follower needs to join; secret.

    Attributes:
        steps, beats: Endpoints of device calls and of heartbeats.
        server_key: Public key of the leader, which it proves to have the other half of.
        public_key, secret_key: The followers' key pair.
    """

    steps: str
    beats: str
    server_key: str
    public_key: str
    secret_key: str

    def encode(self) -> bytes:
        """As bytes, to broadcast."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @staticmethod
    def decode(data: bytes) -> Invitation:
        """The invitation that encode made bytes of."""
        return Invitation(**json.loads(data))


class Host:
    """The leader's end: two bound sockets that only invited followers can connect to.

    Args:
        address: IP address of an interface of this machine.

    Attributes:
        steps, beats: ROUTER sockets; each is used by one thread at a time.
        invitation: For the followers.

    Raises:
        ConfigError: It cannot listen at this address.
    """

    def __init__(self, address: str):
        self._context = zmq.Context()
        self._public_key, secret_key = zmq.curve_keypair()
        self._follower_key, follower_secret = zmq.curve_keypair()
        self.steps = self._listen(address, secret_key)
        self.beats = self._listen(address, secret_key)
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", credentials_provider=self)
        self.invitation = Invitation(
            self.steps.getsockopt_string(zmq.LAST_ENDPOINT),
            self.beats.getsockopt_string(zmq.LAST_ENDPOINT),
            self._public_key.decode(),
            self._follower_key.decode(),
            follower_secret.decode(),
        )

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key may connect (called by ThreadAuthenticator)."""
        return key == self._follower_key

    def close(self) -> None:
        """Sends what is queued, and closes."""
        self.steps.close(_FLUSH_MS)
        self.beats.close(0)
        self._authenticator.stop()
        self._context.term()

    def _listen(self, address: str, secret_key: bytes) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = self._public_key, secret_key
        router.sndhwm = 0  # the followers keep pace: steps wait for each other's results
        router.ipv6 = ":" in address
        try:
            router.bind(f"tcp://[{address}]:*" if ":" in address else f"tcp://{address}:*")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(
                f"cannot listen at {address} ({error}): COORDINATOR_ADDRESS must name an address "
                "of the host whose WORLD_RANK is 0."
            ) from error
        return router


class Guest:
    """A follower's end.

    Args:
        invitation: From the leader.
        process_id: Of this process; names it to the leader.

    Attributes:
        steps, beats: DEALER sockets; each is used by one thread at a time.
    """

    def __init__(self, invitation: Invitation, process_id: int):
        self._context = zmq.Context()
        self.steps = self._connect(invitation, invitation.steps, process_id)
        self.beats = self._connect(invitation, invitation.beats, process_id)
        self.steps.send(b"")  # the leader knows then where to send steps to

    def close(self) -> None:
        """Sends what is queued, and closes."""
        self.steps.close(0)
        self.beats.close(_FLUSH_MS)
        self._context.term()

    def _connect(self, invitation: Invitation, endpoint: str, process_id: int) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.curve_serverkey = invitation.server_key.encode()
        dealer.curve_publickey = invitation.public_key.encode()
        dealer.curve_secretkey = invitation.secret_key.encode()
        dealer.identity = str(process_id).encode()
        dealer.rcvhwm = 0
        dealer.ipv6 = "[" in endpoint
        dealer.connect(endpoint)
        return dealer


class Publisher:
    """Sends device calls to all followers, in order.

    Args:
        steps: A Host's socket.
        num_followers: How many.

    Attributes:
        num_published: Calls sent.
    """

    def __init__(self, steps: zmq.Socket[bytes], num_followers: int):
        self.num_published = 0
        self._steps = steps
        self._followers = [str(i + 1).encode() for i in range(num_followers)]

    def wait_for_followers(self, timeout_s: float) -> None:
        """Returns once every follower has connected.

        Raises:
            ConfigError: One has not in time.
        """
        missing = set(self._followers)
        deadline = time.monotonic() + timeout_s
        while missing:
            if not self._steps.poll(max(0, int(1000 * (deadline - time.monotonic())))):
                names = ", ".join(sorted(name.decode() for name in missing))
                endpoint = self._steps.getsockopt_string(zmq.LAST_ENDPOINT)
                raise ConfigError(
                    f"process {names} did not connect to {endpoint} in {timeout_s:.0f} s: let the "
                    "hosts reach each other on all ports."
                )
            missing.discard(self._steps.recv_multipart()[0])

    def publish(self, call: DeviceCall) -> None:
        """Sends a call."""
        self.num_published += 1
        self._send(encode(call))

    def stop(self) -> None:
        """Tells the followers that no further call comes."""
        self._send(encode(DeviceCall(STOP)))

    def _send(self, frames: list[bytes]) -> None:
        for follower in self._followers:
            self._steps.send_multipart([follower, *frames])


def receive(steps: zmq.Socket[bytes], idle_ms: int) -> Iterator[DeviceCall | None]:
    """The leader's calls until it stops; None whenever none has come for a while."""
    while True:
        if not steps.poll(idle_ms):
            yield None
            continue
        call = decode(steps.recv_multipart())
        if call.name == STOP:
            return
        yield call


def encode(call: DeviceCall) -> list[bytes]:
    """A call as frames."""
    arrays = [np.ascontiguousarray(array) for array in call.arrays]
    forms = [[array.dtype.str, list(array.shape)] for array in arrays]
    header = json.dumps({"name": call.name, "number": call.number, "arrays": forms})
    return [header.encode(), *(array.tobytes() for array in arrays)]


def decode(frames: list[bytes]) -> DeviceCall:
    """The call that encode made frames of."""
    header = json.loads(frames[0])
    arrays = tuple(
        np.frombuffer(data, np.dtype(form)).reshape(shape)
        for data, (form, shape) in zip(frames[1:], header["arrays"], strict=True)
    )
    return DeviceCall(header["name"], header["number"], arrays)


def address_of(coordinator: str) -> str:
    """The IP address of a "host:port".

    Raises:
        ConfigError: The host has no address.
    """
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"COORDINATOR_ADDRESS is {coordinator}: the name {host} has no address ({error})."
        ) from error
