"""The graph of a config's policy, and its picture."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from l2c.graph.cache_graph import CacheGraph
from l2c.policies.context import PolicyContext
from l2c.policies.registry import make_graph
from l2c.report.figures import graph_heatmap, save_figure


def write_graph(cfg: DictConfig, context: PolicyContext, folder: Path) -> tuple[CacheGraph, Path]:
    """Make the graph of the policy and budget of a config; return it with its file in the folder.

    Beside `cache_graph.json` lies `graph.png`.
    """
    options = {str(key): value for key, value in cfg.policy.items() if key != "name"}
    graph = make_graph(cfg.policy.name, context, **options, **({} if cfg.budget is None else {"budget": cfg.budget}))
    path = folder / "cache_graph.json"
    graph.save(path)
    save_figure(graph_heatmap(graph), folder / "graph.png")
    return graph, path
