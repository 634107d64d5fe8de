"""What a loss over attention measures in one layer; differentiable, in the precision of its input."""

from __future__ import annotations

import torch


def score_variance(scores: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Variance over the generated tokens inside a mask, of each head's score with each reference token; mean.

    ``scores`` are the scaled logits [row, head, gen, ref], ``inside`` a bool [row, gen].
    """
    weight = inside[:, None, :, None].to(scores.dtype)
    count = weight.sum(2, keepdim=True).clamp(min=1)
    mean = (scores * weight).sum(2, keepdim=True) / count
    return (((scores - mean) ** 2 * weight).sum(2, keepdim=True) / count).mean()


def centre_variation(
    scores: torch.Tensor, inside: torch.Tensor, gen_grid: tuple[int, int], ref_grid: tuple[int, int]
) -> torch.Tensor:
    """Total variation, over the generated grid, of the centre of each query's attention.

    The centre is the mean place of the reference tokens, 0 to 1 on both axes, weighted by the softmax of
    ``scores`` [row, head, gen, ref]; its steps to the next row and column count where both tokens are
    ``inside`` [row, gen]; the mean step, summed over both axes.
    """
    axes = [(torch.arange(n, device=scores.device, dtype=scores.dtype) + 0.5) / n for n in ref_grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    centres = (scores.softmax(-1) @ places).reshape(*scores.shape[:2], *gen_grid, 2)  # [row, head, y, x, 2]
    within = inside.reshape(-1, 1, *gen_grid)
    steps = scores.new_zeros(())
    count = scores.new_zeros(())
    for axis in (2, 3):
        length = gen_grid[axis - 2] - 1
        both = within.narrow(axis, 0, length) & within.narrow(axis, 1, length)
        moved = (centres.narrow(axis, 1, length) - centres.narrow(axis, 0, length)).abs().sum(-1)
        steps = steps + (moved * both).sum()
        count = count + both.sum() * scores.shape[1]
    return steps / count.clamp(min=1)
