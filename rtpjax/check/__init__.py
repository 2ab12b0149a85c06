"""`rtpjax check`: whether this machine computes what it should; docs/gpu_check.md describes it."""
