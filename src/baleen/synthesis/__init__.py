"""Environments, tasks and demonstrations made from seeds, each task proven before it is used."""
