"""A step of a network that has no backward pass, as kernels for inference have none."""

import torch


class WithoutBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("derivative for int8_linear is not implemented\nand more")
