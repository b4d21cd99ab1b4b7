"""Train the routers of a frozen backbone and export them as a cache graph.

python train_router.py model=dit_digits router.penalty=3e-3 trainer.max_steps=300
"""

from omegaconf import DictConfig

from l2c.backbones.presets import model_preset
from l2c.commands import entry as cli
from l2c.commands.backends import is_pipeline
from l2c.training.routers.run import train_router


@cli.entry("train_router")
def main(cfg: DictConfig) -> None:
    """Train, export, say what came out and what to do next."""
    result = train_router(cfg, cli.run_folder())
    path = result.folder / "cache_graph.json"
    print(result.graph.summary())
    print(
        f"{result.cost.evaluations_worth(result.graph):.2f} evaluations' worth of MACs instead of "
        f"{result.graph.num_evaluations}: {result.cost.speed_up(result.graph):.2f} x by MACs"
    )
    if is_pipeline(cfg.model):
        print(f"wrote {path}\nnext: apply_cache_graph(pipe, l2c.CacheGraph.load('{path}')), see docs/pipelines.md")
        return
    own_weights = cfg.model.checkpoint != model_preset(cfg.model.name).checkpoint
    weights = f" checkpoint={cfg.model.checkpoint}" if own_weights else ""
    print(f"wrote {path}\nnext: python scripts/evaluate.py graph={path}{weights}")


if __name__ == "__main__":
    main()
