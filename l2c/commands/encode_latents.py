"""Encode a folder of images into latents for router training; run again to continue after a kill.

l2c encode images=/data/imagenet/train output=data/latents
torchrun --nproc-per-node 8 -m l2c encode images=/data/imagenet/train output=data/latents
srun --ntasks 8 --gpus-per-task 1 python -m l2c encode images=/data/imagenet/train output=data/latents
"""

import torch
from omegaconf import DictConfig

from l2c.commands.frame import entry as cli
from l2c.data.encode import encode_folder
from l2c.data.image_folder import ImageFolder
from l2c.data.share import this_process
from l2c.data.vae import load_vae


@cli.entry("encode_latents")
def main(cfg: DictConfig) -> None:
    """Find the images, encode this process's share, say what was left out."""
    if cfg.images is None:
        raise ValueError("no images given; say images=FOLDER with one sub-folder per class")
    images = ImageFolder(cfg.images, cfg.image_size)
    part, local = this_process()
    # SLURM may show each task a GPU of its own alone, which is number 0 of one then.
    device = f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    result = encode_folder(
        images,
        load_vae(cfg.vae),
        cfg.output,
        vae_name=cfg.vae,
        batch_size=cfg.batch_size,
        shard_size=cfg.shard_size,
        mirrored=cfg.mirrored,
        part=part,
        device=device,
        progress=part.index == 0,
    )
    print(
        f"wrote {result.num_images} images to {cfg.output}; {len(result.skipped)} unreadable ones are left out of "
        "the shards there, earlier runs' included"
    )
    for name in result.skipped:
        print(f"  {name}")
    if result.missing_shards:
        print(f"{result.missing_shards} shards are still missing, of other processes")


if __name__ == "__main__":
    main()
