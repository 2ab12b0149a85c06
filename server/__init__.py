"""The OpenAI-compatible HTTP server. It sees the engine's border only, and imports no jax."""
