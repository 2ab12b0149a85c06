"""The same server many times over, on Ray Serve.

    client ──► front (front.py)      takes the request, names its prefix (prefix.py)
                 │  a Ray handle, whose router (router.py) picks the replica
                 ▼
               replica (replica.py)  the Sanic server with its engine, in this actor's event loop

Ray Serve owns processes, health, autoscaling and the queue. What is ours is which replica a request
goes to, and that a request whose replica dies before it has begun to answer goes to another one.
"""
