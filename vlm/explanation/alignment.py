"""Where the cells of a CNN's last grid look: not at the middle of their share of the image.

A layer of stride 2 sees more of one side than of the other (padding of 1 and a kernel of 3 put its first cell on the
first pixel, TensorFlow's padding on the second), and the shifts of all layers add up to half a cell of the last grid.
A map that ignores this points beside what it means.
"""

import copy

import torch
from torch import nn

Shift = tuple[float, float]
"""Down and to the right, as a share of the image's side."""


def cell_shift(cnn: nn.Module, size: int) -> Shift:
    """How far the cells look past the middle of their share of a `size` × `size` image.

    Measured by the gradient of the middle cell on a grey image, each kernel replaced by its mean over its places:
    every path is then symmetric about the centre that its paddings and strides give it, whatever was learned.
    """
    plain = copy.deepcopy(cnn).eval().float().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.mean((2, 3), keepdim=True).expand_as(module.weight).contiguous()
    side = 3 * size  # so that the border cuts nothing off
    grey = torch.full((1, 3, side, side), 0.5, device=next(plain.parameters()).device, requires_grad=True)
    with torch.enable_grad():
        grid = plain(grey)  # 1 × C × h × w
        row, column = grid.shape[2] // 2, grid.shape[3] // 2
        cell = grid[0, :, row, column]
        seen = torch.autograd.grad(cell @ torch.linspace(1, 2, len(cell), device=cell.device), grey)[0]
    weight = seen.square().sum(dim=(0, 1)).double().cpu()  # 3 S × 3 S
    if not weight.sum() > 0:  # a CNN that is silent on grey tells nothing
        return 0.0, 0.0
    weight, middles = weight / weight.sum(), torch.arange(side) + 0.5
    down, right = (float(weight.sum(dim=d) @ middles.double()) for d in (1, 0))
    return (down - (row + 0.5) * side / grid.shape[2]) / size, (right - (column + 0.5) * side / grid.shape[3]) / size
