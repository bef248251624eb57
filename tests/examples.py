"""Comparison of examples."""

import torch


def same(a: dict, b: dict) -> bool:
    return all(
        torch.equal(torch.nan_to_num(a[k], -1), torch.nan_to_num(b[k], -1))
        if isinstance(a[k], torch.Tensor)
        else a[k] == b[k]
        for k in a
    )
