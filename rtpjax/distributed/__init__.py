"""Many hosts: one process on each, one mesh over all, one of them in charge.

    process 0 (leader)                              processes 1, 2, ... (followers)
    HTTP, scheduler, engine
    LeadingRunner.execute(call) ── steps ─────────► follow(): Runner.execute(call)
        same program, same order  ◄═ collectives ═►     same program, same order
    LeaderWatch ◄──────────────── heartbeats ─────► FollowerWatch

hosts says who takes part, runtime starts and ends JAX's distributed runtime, channel carries the
calls, heartbeat notices who is gone, leader and follower put them together.
"""
