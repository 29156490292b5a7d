"""The recipes that come with the package: one TOML file each, read by `pipeline/loading.py`."""
