"""What figures are drawn of, and what was drawn."""

from __future__ import annotations

import torch

from prefheads.heads.scores import HeadScores


def marks(figure, name):
    """Points of all lines of this name: a list of (x, y) for each panel."""
    return [
        [
            tuple(p)
            for line in axes.lines
            if line.get_label() == f"_{name}"
            for p in line.get_xydata()
        ]
        for axes in figure.axes
    ]


def many_users(n=8):
    """Head 2.1 is 0.5 for everybody, 4.3 is -0.5; the rest cancels out between users."""
    values = 0.1 * torch.tensor([1.0, -1.0]).repeat(n // 2)[:, None, None].expand(n, 6, 4).clone()
    values[:, 2, 1], values[:, 4, 3] = 0.5, -0.5
    names = tuple(f"u{i}" for i in range(n))
    return HeadScores(values, torch.ones(n), names, names)
