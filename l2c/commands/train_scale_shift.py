"""Train the slopes, scales and shifts of what a cache graph reuses.

python scripts/train_scale_shift.py graph=runs/.../cache_graph.json
python scripts/train_scale_shift.py graph=runs/.../cache_graph.json backend=diffusers pipeline=PATH
"""

from omegaconf import DictConfig

from l2c.commands import entry as cli
from l2c.commands.backends import is_pipeline
from l2c.training.corrections.run import train_correction


@cli.entry("train_scale_shift")
def main(cfg: DictConfig) -> None:
    """Train, then say where the corrected graph is."""
    if cfg.graph is None:
        raise ValueError("no graph given; say graph=PATH of a cache_graph.json (scripts/make_graph.py writes one)")
    cli.check_positive(cfg, "max_steps", "batch_size")
    path = train_correction(cfg, cli.run_folder())
    if is_pipeline(cfg.get("model")):
        print(f"wrote {path}\nnext: apply_cache_graph(pipe, l2c.CacheGraph.load('{path}')), see docs/pipelines.md")
        return
    print(f"wrote {path}\nnext: python scripts/evaluate.py graph={path}")


if __name__ == "__main__":
    main()
