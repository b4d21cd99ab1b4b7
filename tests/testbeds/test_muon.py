"""Muon with AdamW against torch's own, and what is refused."""

import pytest
import torch

from l2c.testbeds.muon import MuonAdamW, orthogonalized

SHAPES = [(12, 12), (24, 12), (12, 36), (12, 12)]


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def gradients(step, like):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator) for p in like]


def test_steps_are_those_of_torch():
    """torch's iterates in bfloat16, which leaves about two digits of an update."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    matrices, vector = weights(0), torch.ones(5, requires_grad=True)
    twins, twin = [p.detach().clone().requires_grad_() for p in matrices], torch.ones(5, requires_grad=True)
    settings = {"weight_decay": 0.1}
    ours = MuonAdamW(matrices, [vector], muon_learning_rate=0.02, learning_rate=0.01, **settings)
    theirs = [torch.optim.Muon(twins, lr=0.02, **settings), torch.optim.AdamW([twin], lr=0.01, **settings)]
    for step in range(5):
        for p, q, grad in zip(matrices, twins, gradients(step, matrices), strict=True):
            p.grad, q.grad = grad, grad.clone()
        vector.grad = twin.grad = torch.linspace(-1, 1, 5) * (step + 1)
        for optimizer in (ours, *theirs):
            optimizer.step()
    torch.testing.assert_close(vector, twin)
    for p, q, start in zip(matrices, twins, weights(0), strict=True):
        moved, wanted = p - start, q - start
        assert (moved - wanted).norm() < 0.02 * wanted.norm()


def test_singular_values_become_one():
    values = torch.linalg.svdvals(orthogonalized(torch.stack([weights(s)[2].detach() for s in range(3)])))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_state_is_saved_and_loaded():
    def run(optimizer, matrices, steps):
        for step in steps:
            for p, grad in zip(matrices, gradients(step, matrices), strict=True):
                p.grad = grad
            optimizer.step()

    def make(values):
        return MuonAdamW(values[:3], values[3:], muon_learning_rate=0.02, learning_rate=0.01)

    unbroken, broken = weights(1), weights(1)
    run(make(unbroken), unbroken, range(4))
    first = make(broken)
    run(first, broken, range(2))
    second = make(broken)
    second.load_state_dict(first.state_dict())
    run(second, broken, range(2, 4))
    for p, q in zip(unbroken, broken, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match=r"got a weight of shape \(5,\); give it among the others"):
        MuonAdamW([torch.ones(5)], [], muon_learning_rate=0.1, learning_rate=0.1)
