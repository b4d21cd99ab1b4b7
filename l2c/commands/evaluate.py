"""Evaluate a cache graph: error, cost and time against the uncached sampler and baselines of about equal MACs.

l2c evaluate graph=runs/demo/cache_graph.json

With a reference: FID and the other figures of papers, of images that are there or that are drawn first.

l2c evaluate experiment=l2c_dit_xl2_ddim50 graph=PATH reference=VIRTUAL_imagenet256_labeled.npz
"""

from pathlib import Path

from omegaconf import DictConfig

from l2c.backbones.backbone import Backbone
from l2c.backbones.presets import load_backbone
from l2c.calibration.cost import count_macs
from l2c.commands.frame import entry as cli
from l2c.commands.frame.backends import configured_backbone, is_pipeline
from l2c.commands.frame.sampler import preset_of
from l2c.commands.frame.table import this_command_line
from l2c.evaluation.comparison import fewer_evaluations
from l2c.evaluation.graph_evaluation import evaluate_samplers
from l2c.evaluation.graph_report import scores_table, table, write_report
from l2c.evaluation.scores.features import DigitsFeatures, FeatureExtractor, InceptionFeatures
from l2c.evaluation.scores.reference import (
    TensorImages,
    check_reference,
    is_statistics,
    load_reference,
    open_images,
)
from l2c.evaluation.scores.scores import score
from l2c.graph.binding import scale_in_use
from l2c.graph.cache_graph import CacheGraph
from l2c.io.atomic import check_another, check_writable, output_file, write_json
from l2c.policies.best import reference_evaluations
from l2c.policies.methods.random_layers import random_layers
from l2c.sampling.sampler import Sampler
from l2c.sampling.uncached import uncached_of
from l2c.testbeds.digits import digits
from l2c.testbeds.digits_classifier import DigitsClassifier
from l2c.testbeds.picture_classifier import PictureClassifier
from l2c.testbeds.readers import reader_of


@cli.entry("evaluate")
def main(cfg: DictConfig) -> None:
    """Compare the graph with the uncached sampler, or score images against a reference."""
    if is_pipeline(cfg.get("model")):
        if cfg.reference is not None or cfg.samples is not None:
            raise ValueError(
                "scores against a reference are not made from a pipeline; leave reference and samples out for the "
                "error against its uncached latents, or score drawn images with samples=PATH.npz and no backend"
            )
        evaluate_graph(cfg)
    elif any(cfg.get(name) is not None for name in ("solver", "reference", "samples")):  # experiments set a solver
        score_images(cfg)
    else:
        evaluate_graph(cfg)


def score_images(cfg: DictConfig) -> None:
    """Draw images where none are given, score them, write and print the scores."""
    if cfg.reference is None:
        raise ValueError(
            "no reference given; say reference=PATH of an .npz of real images or their statistics (ADM publishes "
            "VIRTUAL_imagenet256_labeled.npz), or reference=digits"
        )
    cfg.num_images = 50_000 if cfg.num_images is None else cfg.num_images
    cfg.batch_size = 32 if cfg.batch_size is None else cfg.batch_size
    features = cfg.features or ("digits" if str(cfg.reference) == "digits" else "inception")
    # Before hours of drawing.
    extractor = DigitsFeatures(DigitsClassifier.load()) if features == "digits" else InceptionFeatures(cfg.inception)
    if cfg.save_statistics is None:
        _score(cfg, extractor, None)
        return
    check_another("save_statistics", cfg.save_statistics, reference=cfg.reference, samples=cfg.samples)
    with output_file("save_statistics", cfg.save_statistics, ours=is_statistics) as statistics:
        _score(cfg, extractor, statistics)


def _score(cfg: DictConfig, extractor: FeatureExtractor, statistics: Path | None) -> None:
    """Draw images where none are given, score them; write the reference's statistics where a path is given."""
    settings = {"batch_size": cfg.batch_size, "device": str(cli.device(cfg.device))}
    folder = cli.run_folder()
    check_writable(folder / "scores.json")
    if str(cfg.reference) != "digits":
        check_reference(cfg.reference)
    source = cfg.samples
    if source is None:
        from l2c.commands.frame.drawing import draw_by  # brings Lightning

        drawn = draw_by(cfg, folder / "samples")
        if not drawn.first_process:
            return
        source = drawn.folder
        print(f"drew {drawn.num_images} images in {drawn.seconds:.1f} s: {drawn.images_per_second:.2f} images/s")
    images = TensorImages(digits()[0]) if str(source) == "digits" else open_images(source)
    real = TensorImages(digits()[0]) if str(cfg.reference) == "digits" else cfg.reference
    reference = load_reference(real, extractor, **settings)
    if statistics is not None:
        reference.save_statistics(statistics)
    scores = score(
        images,
        reference,
        extractor,
        **settings,
    )
    content = {
        "command": this_command_line(),
        "samples": str(source),
        "reference": str(cfg.reference),
        **scores.to_dict(),
    }
    write_json(folder / "scores.json", content)
    print(f"{scores_table(scores)}\n\nwrote {folder / 'scores.json'}")


def evaluated_backbone(cfg: DictConfig, graph: CacheGraph) -> tuple[Backbone, float | None, PictureClassifier | None]:
    """Return the backbone that a graph is evaluated on, the guidance scale, and the classifier of its images."""
    if is_pipeline(cfg.get("model")):
        scale = scale_in_use(cfg.cfg_scale, graph.cfg_scale, cfg.solver.cfg_scale)
        count = reference_evaluations(graph)
        fewer = "fewer_steps" in cfg.baselines or count != graph.num_evaluations
        backbone = configured_backbone(cfg.model, {"num_evaluations": count, "cfg_scale": scale}, fewer_steps=fewer)
        return (backbone if cfg.device is None else backbone.to(cli.device(cfg.device))), scale, None
    preset = preset_of(cfg, graph)
    backbone = load_backbone(preset, checkpoint=cfg.checkpoint).to(cli.device(cfg.device))
    scale = scale_in_use(cfg.cfg_scale, graph.cfg_scale, preset.sampling.cfg_scale)
    return backbone, scale, reader_of(preset)


def evaluate_graph(cfg: DictConfig) -> None:
    """Load, build the samplers, compare, report."""
    cfg.num_images = 200 if cfg.num_images is None else cfg.num_images
    cfg.batch_size = 250 if cfg.batch_size is None else cfg.batch_size
    if cfg.graph is None:
        raise ValueError("no graph given; say graph=PATH of a cache_graph.json (l2c train and l2c graph write one)")
    graph = CacheGraph.load(cfg.graph)
    backbone, scale, reader = evaluated_backbone(cfg, graph)
    cost = count_macs(backbone)

    def uncached(num_evaluations: int) -> Sampler:
        return uncached_of(graph, backbone, cfg_scale=scale, num_evaluations=num_evaluations)

    samplers = {
        "uncached": [uncached(reference_evaluations(graph))],
        str(graph.provenance.get("method", "graph")): [Sampler(backbone, graph=graph, cfg_scale=scale)],
    }
    if "fewer_steps" in cfg.baselines:
        samplers["fewer steps"] = [uncached(fewer_evaluations(graph.solver, cost.evaluations_worth(graph)))]
    if "random" in cfg.baselines:
        draws = [random_layers(graph, cost, seed=seed) for seed in range(cfg.random_draws)]
        samplers["random layers"] = [Sampler(backbone, graph=draw, cfg_scale=scale) for draw in draws]
    evaluation = evaluate_samplers(
        samplers,
        cost=cost,
        num_images=cfg.num_images,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        classifier=reader,
        timing_batch=cfg.timing_batch,
        timing_repetitions=cfg.timing_repetitions,
    )
    report = write_report(cli.run_folder(), graph, evaluation, cost, command=this_command_line())
    print(table(evaluation, cost))
    print(f"\nreport: {report}\npage with pictures: {report.with_suffix('.html')}")


if __name__ == "__main__":
    main()
