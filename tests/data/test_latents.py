"""Images, latents and the encode between them, with a stand-in for the autoencoder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from l2c.data import vae as vae_module
from l2c.data.encode import encode_folder
from l2c.data.image_folder import ImageFolder, centre_crop
from l2c.data.imagenet import ImageNetDataModule
from l2c.data.latent_shards import LatentShards, Manifest
from l2c.data.latents import LatentsDataModule
from l2c.data.numbered import identity_of
from l2c.data.share import Share, this_process
from l2c.data.vae import load_vae
from l2c.testbeds.folder_data import FolderDataModule

SIZE = 64
FITS = {"image_shape": (4, 8, 8), "num_labels": 5, "vae_scale": 0.5}


class HalvingVae:
    """Means of 8 x 8 patches; the fourth channel is their sum. Dies after some calls where asked to."""

    scale = 0.5

    def __init__(self, calls=None):
        self.calls = calls

    def encode(self, images):
        if self.calls is not None:
            self.calls -= 1
            if self.calls < 0:
                raise KeyboardInterrupt
        mean = torch.nn.functional.avg_pool2d(images, 8)
        mean = torch.cat([mean, mean.sum(1, keepdim=True)], dim=1)
        return mean, torch.full_like(mean, 0.1)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 256, (70 + i, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"class{label}" / f"{i}.png")
    return tmp_path / "images"


def encode(folder, output, vae=None, **changes):
    settings = {"vae_name": "halving", "batch_size": 2, "shard_size": 5, "progress": False, **changes}
    return encode_folder(ImageFolder(folder, SIZE), vae or HalvingVae(), output, **settings)


def test_the_crop_is_the_centre_of_the_shorter_side():
    pixels = np.zeros((512, 768, 3), dtype=np.uint8)
    pixels[:, 128:640] = 200
    pixels[200:300, 300:400] = 90
    cropped = np.asarray(centre_crop(Image.fromarray(pixels), 128))
    assert cropped.shape == (128, 128, 3)
    assert cropped[:, 1:-1].min() >= 85  # the black margins are gone
    assert abs(int(cropped[62, 55, 0]) - 90) <= 2
    assert centre_crop(Image.new("RGB", (33, 64)), 64).size == (64, 64)


def test_encode_writes_every_image_and_its_mirror(folder, tmp_path):
    result = encode(folder, tmp_path / "latents")
    assert (result.num_images, result.skipped, result.missing_shards) == (12, (), 0)
    shards = LatentShards(tmp_path / "latents")
    assert len(shards) == 24
    labels = torch.stack([shards[i][2] for i in range(24)])
    assert labels.bincount().tolist() == [8, 8, 8]
    image = ImageFolder(folder, SIZE).read(0)
    mean, _ = HalvingVae().encode(torch.stack([image, image.flip(-1)]))
    torch.testing.assert_close(shards[0][0].float(), mean[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(shards[2][0].float(), mean[1], atol=1e-3, rtol=1e-3)


def test_a_killed_encode_continues(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(folder, tmp_path / "broken", HalvingVae(calls=9))
    names = {path.name for path in (tmp_path / "broken").iterdir()}
    assert names == {"latents.json", "latents-00000-of-00003.safetensors"}
    with pytest.raises(ValueError, match="incomplete: 2 of 3 shards are missing; run l2c encode again"):
        LatentShards(tmp_path / "broken")
    assert encode(folder, tmp_path / "broken").num_images == 7
    encode(folder, tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "broken" / path.name).read_bytes() == path.read_bytes()


def repainted(path, seed=9):
    """Replace an image by another one of the same name, format and size in bytes."""
    size = path.stat().st_size
    pixels = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[: max(size, path.stat().st_size)])


class OtherVae(HalvingVae):
    def encode(self, images):
        mean, std = super().encode(images)
        return -mean, std


def weighted(seed):
    vae = HalvingVae()
    vae.network = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(vae.network.weight, seed)
    torch.nn.init.zeros_(vae.network.bias)
    return vae


CHANGES = {
    "another image": lambda folder: repainted(folder / "class2" / "3.png"),
    "another name": lambda folder: (folder / "class2" / "3.png").rename(folder / "class2" / "4.png"),
    "another class": lambda folder: (folder / "class1" / "3.png").rename(folder / "class2" / "9.png"),
    "another order": lambda folder: (folder / "class0").rename(folder / "class9"),
    "one that cannot be read": lambda folder: (folder / "class2" / "3.png").write_bytes(b"x"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["killed", "whole"])
def test_latents_of_other_images_are_not_mixed(folder, tmp_path, change, moment):
    if moment == "killed":
        with pytest.raises(KeyboardInterrupt):
            encode(folder, tmp_path / "latents", HalvingVae(calls=9))
    else:
        encode(folder, tmp_path / "latents")
    before = {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()}
    CHANGES[change](folder)
    with pytest.raises(ValueError, match=r"other settings: images_digest is sha256:\w+ there, sha256:\w+ here"):
        encode(folder, tmp_path / "latents")
    assert {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()} == before


def test_latents_of_another_autoencoder_of_one_name_are_not_mixed(folder, tmp_path):
    encode(folder, tmp_path / "latents", weighted(1.0))
    assert encode(folder, tmp_path / "latents", weighted(1.0), vae_name="the same elsewhere").num_images == 0
    for other in (weighted(2.0), HalvingVae(), OtherVae()):
        with pytest.raises(ValueError, match=r"other settings: vae_digest is sha256:\w+ there, sha256:\w+ here"):
            encode(folder, tmp_path / "latents", other)


def test_shards_of_others_by_the_names_of_ours_are_refused(folder, tmp_path):
    encode(folder, tmp_path / "theirs", OtherVae())
    encode(folder, tmp_path / "latents")
    path = Manifest.load(tmp_path / "latents").path(tmp_path / "latents", 1)
    ours = path.read_bytes()
    path.write_bytes((tmp_path / "theirs" / path.name).read_bytes())
    said = r"latents-00001-of-00003.safetensors is of other images or settings, so that latents would be mixed"
    for use in (lambda: encode(folder, tmp_path / "latents"), lambda: LatentShards(tmp_path / "latents")):
        with pytest.raises(ValueError, match=said):
            use()
    (tmp_path / "latents" / "latents.json").unlink()
    with pytest.raises(ValueError, match=said):
        encode(folder, tmp_path / "latents")
    path.write_bytes(ours)
    assert encode(folder, tmp_path / "latents").num_images == 0  # all are of these images
    save_file({"mean": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"is of an older l2c, which does not say what it is of, so that latents"):
        encode(folder, tmp_path / "latents")


def test_a_folder_of_an_older_version_is_read_and_not_gone_on_with(folder, tmp_path):
    encode(folder, tmp_path / "latents")
    path = tmp_path / "latents" / "latents.json"
    content = json.loads(path.read_text())
    for name in ("images_digest", "vae_digest", "digest"):
        del content[name]
    path.write_text(json.dumps({**content, "version": 1}))
    for k in range(3):
        shard = Manifest.load(tmp_path / "latents").path(tmp_path / "latents", k)
        save_file(load_file(shard), shard, {"skipped": '["class0/x.png"]'})
    assert LatentShards(tmp_path / "latents").skipped == 3 * ["class0/x.png"]
    with pytest.raises(ValueError, match=r"images_digest is null there, sha256:\w+ here"):
        encode(folder, tmp_path / "latents")


def test_of_two_that_begin_at_once_in_a_folder_one_is_refused(folder, tmp_path, monkeypatch):
    manifest = Manifest("vae", 0.5, 16, (4, 2, 2), 3, 3, 2, True, "sha256:0", "sha256:0")
    own, faster = Manifest.save, dataclasses.replace(manifest, num_images=2)

    def overtaken(self, folder, *, once=False):
        own(faster, folder, once=once)
        own(self, folder, once=once)

    monkeypatch.setattr(Manifest, "save", overtaken)
    with pytest.raises(ValueError, match="num_images is 2 there, 3 here"):
        manifest.claim(tmp_path)
    assert Manifest.load(tmp_path) == faster


def test_data_that_changed_at_their_path_are_told(folder, tmp_path):
    encode(folder, tmp_path / "latents")
    modules = {
        "images": lambda: ImageNetDataModule(folder, HalvingVae(), **FITS),
        "latents": lambda: LatentsDataModule(tmp_path / "latents", **FITS),
        "pictures": lambda: FolderDataModule(4, 0, folder=folder, image_shape=(3, 8, 8), num_labels=3),
    }
    before = {name: identity_of(module()) for name, module in modules.items()}
    assert before == {name: identity_of(module()) for name, module in modules.items()}
    repainted(folder / "class2" / "3.png")
    shutil.rmtree(tmp_path / "latents")
    encode(folder, tmp_path / "latents")
    after = {name: identity_of(module()) for name, module in modules.items()}
    assert all(before[name] != after[name] for name in modules)
    assert before["images"].keys() == after["images"].keys() == {"images_digest", "vae_digest"}


def test_two_processes_share_the_shards(folder, tmp_path):
    assert encode(folder, tmp_path / "shared", part=Share(1, 2)).missing_shards == 2
    assert encode(folder, tmp_path / "shared", part=Share(0, 2)).missing_shards == 0
    assert len(LatentShards(tmp_path / "shared")) == 24


LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NAME")
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (Share(0, 1), 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (Share(3, 4), 1)),
        (SLURM, (Share(5, 8), 1)),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "2"}, (Share(0, 2), 0)),  # torchrun within SLURM
        ({**SLURM, "SLURM_JOB_NAME": "bash"}, (Share(0, 1), 0)),  # a shell on a node, no task of a job
    ],
)
def test_torchruns_and_slurms_ranks_are_read(monkeypatch, environment, expected):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert this_process() == expected


def test_parts_share_numbers_out_without_rest_or_overlap():
    parts = [Share(i, 3).of(range(8)) for i in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert Share(1, 3).of([2, 4, 6, 7]) == [4, 7]  # what is there already does not move the others


def test_unreadable_images_are_skipped_counted_and_named(folder, tmp_path, caplog):
    (folder / "class1" / "2.png").write_bytes(b"no image")
    result = encode(folder, tmp_path / "latents")
    assert (result.num_images, result.skipped) == (11, ("class1/2.png",))
    assert "skipped the unreadable image" in caplog.text
    assert LatentShards(tmp_path / "latents").skipped == ["class1/2.png"]
    images = ImageFolder(folder, SIZE)
    assert torch.equal(images.read_next(6)[0], images.read(7))


def test_a_folder_of_no_readable_image_is_an_error(folder, tmp_path):
    for image in folder.glob("*/*.png"):
        image.write_bytes(b"no image")
    for _ in range(2):  # also where the shards are there already
        with pytest.raises(ValueError, match=r"none of the \d+ images can be read \[class0/.*remove that folder"):
            encode(folder, tmp_path / "latents")


def test_a_continued_encode_counts_all_unreadable_images(folder, tmp_path):
    for name in ("class0/1.png", "class2/3.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(KeyboardInterrupt):
        encode(folder, tmp_path / "latents", HalvingVae(calls=9))
    result = encode(folder, tmp_path / "latents")
    assert (result.num_images, result.skipped) == (6, ("class0/1.png", "class2/3.png"))
    again = encode(folder, tmp_path / "latents")
    assert (again.num_images, again.skipped) == (0, result.skipped)
    shard = Manifest.load(tmp_path / "latents").path(tmp_path / "latents", 0)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot read latents from .*delete it and run"):
        encode(folder, tmp_path / "latents")


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image folder at"):
        ImageFolder(tmp_path / "missing", SIZE)
    (tmp_path / "class").mkdir()
    with pytest.raises(ValueError, match="1 sub-folders but no images"):
        ImageFolder(tmp_path, SIZE)
    (tmp_path / "class" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 images"):
        ImageFolder(tmp_path, SIZE).read_next(0)


def test_latents_of_something_else_are_refused(folder, tmp_path):
    path = tmp_path / "latents"
    encode(folder, path)
    for change, message in (
        ({"image_shape": (4, 16, 16)}, r"shape \(4, 8, 8\) \(images of 64\), but the backbone takes \(4, 16, 16\)"),
        ({"vae_scale": 0.18215}, r"VAE scale 0.5 \(halving\), but data.vae_scale is 0.18215"),
        ({"num_labels": 2}, "have 3 classes, but the backbone knows 2"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentsDataModule(path, **{**FITS, **change})
    with pytest.raises(ValueError, match="holds latents with other settings: shard_size is 5 there, 6 here"):
        encode(folder, path, shard_size=6)
    with pytest.raises(FileNotFoundError, match="no latents at"):
        LatentsDataModule(tmp_path, **FITS)
    shard = Manifest.load(path).path(path, 1)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read latents from"):
        LatentsDataModule(path, **FITS)
    (path / "latents.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is no manifest of latents"):
        LatentsDataModule(path, **FITS)


def test_samples_are_scaled_and_redrawn(folder, tmp_path):
    encode(folder, tmp_path / "latents", mirrored=False)
    module = LatentsDataModule(tmp_path / "latents", **FITS, batch_size=12)
    batches = iter(module.train_dataloader())
    (x, y), (x_again, y_again) = next(batches), next(batches)
    assert x.shape == (12, 4, 8, 8)
    first = {int(label): x[y == label].sum() for label in range(3)}
    assert all(first[label] != x_again[y_again == label].sum() for label in first)  # other samples
    assert torch.equal(next(iter(module.train_dataloader()))[0], x)  # the same step, the same sample
    # The same posteriors, each sample within five standard deviations of its scaled mean.
    means = torch.stack([module.shards[i][0].float() for i in range(12)])
    distance = (x[:, None] / 0.5 - means[None]).abs().amax(dim=(2, 3, 4)).amin(dim=1)
    assert float(distance.max()) < 0.5


def test_images_are_encoded_on_the_fly(folder):
    module = ImageNetDataModule(folder, HalvingVae(), **FITS, batch_size=4)
    x, y = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert (x.shape, y.shape) == ((4, 4, 8, 8), (4,))
    with pytest.raises(ValueError, match=r"the VAE has the scale 0\.5, but"):
        ImageNetDataModule(folder, HalvingVae(), **{**FITS, "vae_scale": 0.18215})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[imagenet\]'"):
        load_vae("stabilityai/sd-vae-ft-ema")


def test_a_draw_depends_on_its_number_alone():
    mean, std = torch.zeros(2, 4, 2, 2), torch.ones(2, 4, 2, 2)
    both = vae_module.draw_latents(mean, std, 1.0, [7, 8], seed=0)
    assert torch.equal(vae_module.draw_latents(mean[:1], std[:1], 1.0, [8], seed=0)[0], both[1])
