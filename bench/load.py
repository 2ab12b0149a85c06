"""Two ways to load a server.

Closed loop: N clients, each sends its next request when its last one is answered; shows the
throughput at a concurrency. Open loop: requests come at their own times however slow the server is,
as users do; shows the latency at a rate, and queues that grow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from bench.client import BenchClient
from bench.stats import RequestRecord
from bench.workload import poisson_arrivals

Bodies = Sequence[dict[str, object]]


async def closed_loop(client: BenchClient, bodies: Bodies, num_clients: int) -> list[RequestRecord]:
    """Returns a record per request, in order of completion."""
    records: list[RequestRecord] = []
    remaining = iter(bodies)

    async def send_until_empty() -> None:
        for body in remaining:
            records.append(await client.run(body))

    await asyncio.gather(*(send_until_empty() for _ in range(num_clients)))
    return records


async def open_loop(
    client: BenchClient, bodies: Bodies, *, rate: float, seed: int
) -> list[RequestRecord]:
    """Sends requests at Poisson arrival times, `rate` a second; returns them in that order."""
    origin_s = time.perf_counter()

    async def send_at(arrival_s: float, body: dict[str, object]) -> RequestRecord:
        await asyncio.sleep(origin_s + arrival_s - time.perf_counter())
        return await client.run(body, start_s=origin_s + arrival_s)

    arrivals = poisson_arrivals(rate, seed)
    return await asyncio.gather(
        *(send_at(arrival_s, body) for arrival_s, body in zip(arrivals, bodies, strict=False))
    )
