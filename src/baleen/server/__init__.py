"""The OpenAI-compatible HTTP face of the engine, its endpoints for trainers, and the chat page."""
