"""Draw many images for figures such as FID, on one process or many; run again to continue after a kill.

l2c sample-many graph=PATH num_images=50000 hydra.run.dir=runs/samples
torchrun --nproc-per-node 8 -m l2c sample-many graph=PATH hydra.run.dir=runs/samples
"""

from omegaconf import DictConfig

from l2c.commands.frame import entry as cli
from l2c.commands.frame.drawing import draw_by
from l2c.commands.frame.table import command_line
from l2c.drawing.image_shards import ImageShards


@cli.entry("sample_many")
def main(cfg: DictConfig) -> None:
    """Load, draw this process's share, say how fast, write the archive."""
    drawn = draw_by(cfg, cli.run_folder())
    if not drawn.first_process:
        return
    print(
        f"drew {drawn.num_images} of {cfg.num_images} images in {drawn.seconds:.1f} s: "
        f"{drawn.images_per_second:.2f} images/s"
    )
    where = drawn.write_archive() if cfg.npz else drawn.folder
    print(f"wrote {where}")
    from l2c.testbeds.digits import IMAGE_SHAPE

    if ImageShards(drawn.folder).shape == IMAGE_SHAPE:
        print(f"next: {command_line('evaluate', samples=drawn.folder, reference='digits')}")
    else:
        print("l2c evaluate scores the folder (samples=PATH) against a reference of real images (reference=PATH.npz)")


if __name__ == "__main__":
    main()
