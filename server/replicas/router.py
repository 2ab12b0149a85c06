"""Ray Serve's request router for replicas that keep prompts' prefixes."""

from __future__ import annotations

import logging

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.replicas.prefix import PrefixMemory, ranked

logger = logging.getLogger(__name__)


class PrefixRouter(RequestRouter):
    """Prefers the replica with the longest part of a prompt, unless it is much busier than others.

    Not the router that Ray Serve has for this: that one asks an actor for each request, blocking
    the event loop, and needs the dependencies of Ray's own LLM server.

    Source: https://docs.ray.io/en/latest/serve/advanced-guides/custom-request-router.html
    """

    def initialize_state(self, **kwargs: int) -> None:
        """Called by Ray Serve with the deployment's request_router_kwargs.

        Args:
            **kwargs: `slack`, how many more requests than the least busy replica one with the
                prefix may have.
        """
        self._slack = kwargs["slack"]
        self._memory: PrefixMemory[ReplicaID] = PrefixMemory()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are asked to take the request."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(name) or 0 for name in replicas}
        blocks = () if pending_request is None else pending_request.args[0].blocks
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # where all of them are full
        return [[replicas[name]] for name in ranked(self._memory, blocks, loads, self._slack)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """The replica computes the prompt, and has it from now on."""
        self._memory.note(pending_request.args[0].blocks, replica_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Its cache is gone."""
        super().on_replica_actor_died(replica_id)
        self._memory.forget(replica_id)
