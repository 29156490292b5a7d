"""A run folder becomes one HTML page: numbers, curves, and episodes to read. Knows files, not torch."""
