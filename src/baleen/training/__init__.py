"""Samples to rows to gradients: packing, losses, optimiser, and a loop that resumes to the same bits."""
