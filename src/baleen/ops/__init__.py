"""The hot arithmetic: one file per operation, each a pure function on plain tensors under its formula."""
