"""Turn another project's router or schedule into a cache graph, or a cache graph into its schedule.

l2c import file=DDIM20_router.pt model=dit_xl2 num_evaluations=20 threshold=0.1
"""

from pathlib import Path

from omegaconf import DictConfig

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import ModelPreset, load_backbone
from l2c.commands.frame import entry as cli
from l2c.graph.cache_graph import CacheGraph
from l2c.graph.file import FORMAT
from l2c.integrations.l2c_routers import import_l2c_router
from l2c.integrations.smoothcache import export_smoothcache, import_smoothcache, is_smoothcache
from l2c.io.atomic import check_another, output_file
from l2c.io.json_fields import form_of


def asked_evaluations(cfg: DictConfig) -> int | None:
    """Return the number of evaluations that the command line gives; None where it gives none.

    Raises:
        ValueError: if it gives two, or settings of the solver that a converted graph does not take from there.

    """
    settings = {override.partition("=")[0].lstrip("+") for override in cli.repeated("solver")}
    own = "solver.num_evaluations"
    schedule = Path(cfg.file).suffix == ".json"
    unread = sorted(settings - {"solver", "solver.name"} - (set() if schedule else {own}))
    if unread:
        why = "a schedule says its evaluations itself" if unread[0] == own else "a router file holds nothing of it"
        raise ValueError(f"{unread[0]} is not read by l2c import: {why}; leave it out")
    if own not in settings:
        return None if cfg.num_evaluations is None else int(cfg.num_evaluations)
    if cfg.num_evaluations not in (None, cfg.solver.num_evaluations):
        raise ValueError(
            f"num_evaluations={cfg.num_evaluations} and {own}={cfg.solver.num_evaluations} differ; give one of them"
        )
    return int(cfg.solver.num_evaluations)


@cli.entry("import_router")
def main(cfg: DictConfig) -> None:
    """Read, convert, write, say what came out."""
    if cfg.output is not None:
        check_another("output", cfg.output, graph=cfg.graph, file=cfg.file, checkpoint=cfg.checkpoint)
    if cfg.graph is not None:
        wanted = cfg.output or cli.run_folder() / "schedule.json"
        with output_file("output", wanted, ours=is_smoothcache) as output:
            export_smoothcache(CacheGraph.load(cfg.graph), output)
        print(f"wrote {output}")
        return
    if cfg.file is None:
        raise ValueError("nothing to convert; say file=PATH of a router or schedule, or graph=PATH of a cache graph")
    wanted = cfg.output or cli.run_folder() / "cache_graph.json"
    with output_file("output", wanted, ours=lambda there: form_of(there) == FORMAT) as output:
        graph = converted(cfg)
        graph.save(output)
    print(f"{graph.summary()}\nwrote {output}")


def converted(cfg: DictConfig) -> CacheGraph:
    """Return the graph of another project's file."""
    model: ModelPreset | Backbone = ModelPreset.of(cfg.model)
    if cfg.checkpoint is not None:
        model = load_backbone(cfg.model, checkpoint=cfg.checkpoint)
    solver = cfg.solver.name
    num_evaluations = asked_evaluations(cfg)
    if Path(cfg.file).suffix == ".json":
        routed = cfg.routed if cfg.routed is None or isinstance(cfg.routed, str) else list(cfg.routed)
        return import_smoothcache(cfg.file, model, solver=solver, routed=routed)
    if num_evaluations is None or cfg.threshold is None:
        raise ValueError(
            "a router file needs num_evaluations (that it was trained for) and threshold (published: 0.1 for DiT at "
            "256, 0.9 for DiT at 512 and U-ViT); give both"
        )
    return import_l2c_router(cfg.file, model, solver=solver, num_evaluations=num_evaluations, threshold=cfg.threshold)


if __name__ == "__main__":
    main()
