"""Objective, advantages, rewards, replayable samples and their packing, the mixture of domains."""
