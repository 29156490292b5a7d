"""Chunking changes the memory, not the numbers."""

from __future__ import annotations

import pytest
import torch

from baleen.ops.logprobs import token_logprobs


@pytest.mark.parametrize("chunk", [1, 4, 10, 11, 4096])
def test_values_and_gradients_are_those_of_the_whole_log_softmax(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(11, 6, generator=generator), torch.randn(20, 6, generator=generator)
    targets = torch.randint(0, 20, (11,), generator=generator)
    results = []
    for form in ("chunked", "whole"):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if form == "chunked":
            values = token_logprobs(h, w, targets, chunk=chunk)
        else:
            values = (h @ w.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        (values * torch.arange(11)).sum().backward()
        results.append((values.detach(), h.grad, w.grad))
    for chunked, whole in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
