"""Tokens in, tokens out: batched decoding over a cache of latents, and the trace of what sampling decided."""
