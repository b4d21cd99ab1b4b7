"""The Lightning module of a distillation: the distillation's own steps, checkpoints without the backbone."""

import torch

from l2c.calibration.distillation import Distillation, distil
from l2c.sampling.sampler import Sampler, seeded_noise
from l2c.training.corrections.lit_correction import LitCorrection
from l2c.training.trainer import make_bare_trainer


def make_distillation(make_dit, make_graph):
    backbone = make_dit(in_channels=1)
    sampler = Sampler(backbone, solver="ddim", num_evaluations=4)
    graph = make_graph(backbone, num_evaluations=4, rows=[[True] * 4, [False] * 4, [True, False] * 2, [False] * 4])
    return Distillation(sampler, graph)


def test_lightning_takes_the_steps_of_the_plain_loop(make_dit, make_graph, tmp_path):
    plain, by_lightning = (make_distillation(make_dit, make_graph) for _ in range(2))
    batches = [(seeded_noise((1, 8, 8), i, 2), torch.tensor([0, 1])) for i in range(3)]
    distil(plain, batches, 3)
    trainer = make_bare_trainer(accelerator="cpu", max_steps=3, default_root_dir=tmp_path)
    trainer.fit(LitCorrection(by_lightning, max_steps=3), torch.utils.data.DataLoader(batches, batch_size=None))
    for name, value in plain.trained().items():
        assert torch.equal(by_lightning.trained()[name], value), name
    assert plain.slopes.abs().sum() > 0


def test_checkpoints_hold_what_is_trained_alone(make_dit, make_graph):
    module = LitCorrection(make_distillation(make_dit, make_graph))
    checkpoint = {"state_dict": module.state_dict()}
    assert any("backbone" in name for name in checkpoint["state_dict"])
    module.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {"distillation.slopes", "distillation.maps"}
