"""A layer that nobody may differentiate, to put where backpropagation is not allowed."""

import torch


class _Forbidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("this layer was differentiated")


class NoBackward(torch.nn.Module):
    """Doubles its input; its backward raises, with ``in_grad_mode=False`` a graph does already."""

    def __init__(self, in_grad_mode=True):
        super().__init__()
        self.in_grad_mode = in_grad_mode

    def forward(self, x):
        assert self.in_grad_mode or not torch.is_grad_enabled()
        return _Forbidden.apply(x)
