"""diffusers' own AutoencoderKL, tiny and random, from a local folder."""

import pytest
import torch

from l2c.data.encode import encode_folder
from l2c.data.image_folder import ImageFolder
from l2c.data.latent_shards import LatentShards
from l2c.data.latents import LatentsDataModule
from l2c.data.vae import load_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An autoencoder of four levels, which makes latents 8 times smaller, saved as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    path = tmp_path_factory.mktemp("vae")
    network.save_pretrained(path)
    return path


def test_posteriors_and_images_are_diffusers_own(folder):
    import diffusers

    vae = load_vae(str(folder))
    network = diffusers.AutoencoderKL.from_pretrained(folder)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = vae.encode(images)
    assert mean.shape == std.shape == (2, 4, 8, 8)
    with torch.no_grad():
        posterior = network.encode(images).latent_dist
        torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(std, posterior.std, atol=1e-5, rtol=1e-4)
        latents = 0.18215 * mean
        torch.testing.assert_close(vae.decode(latents), network.decode(mean).sample, atol=1e-5, rtol=1e-4)
    assert vae.scale == 0.18215
    assert vae.decode(latents).shape == images.shape
    assert not any(parameter.requires_grad for parameter in vae.network.parameters())


def test_a_folder_of_images_becomes_latents(folder, tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "images" / "class").mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "class" / f"{i}.png")
    vae = load_vae(str(folder))
    images = ImageFolder(tmp_path / "images", 64)
    encode_folder(images, vae, tmp_path / "latents", vae_name=str(folder), batch_size=3, progress=False)
    mean, _ = vae.encode(torch.stack([images.read(i) for i in range(3)]))
    torch.testing.assert_close(LatentShards(tmp_path / "latents")[0][0].float(), mean[0], atol=2e-3, rtol=2e-3)
    data = LatentsDataModule(
        tmp_path / "latents", image_shape=(4, 8, 8), num_labels=1000, vae_scale=0.18215, batch_size=2
    )
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y.tolist()) == ((2, 4, 8, 8), [0, 0])


def test_an_empty_folder_is_no_autoencoder(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(OSError, match=r"config\.json"):
        load_vae(str(tmp_path))
