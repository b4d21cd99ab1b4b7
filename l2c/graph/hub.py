"""Graphs as folders with a model card, here or on the Hugging Face Hub; huggingface_hub is imported where needed."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from l2c.graph import file as graph_file
from l2c.graph.fields import GraphFields
from l2c.graph.given import each, takes, text
from l2c.graph.layer_names import ends_in_output, layers_of
from l2c.graph.statistics import statistics_of
from l2c.graph.text import summary
from l2c.io.atomic import copy_file, write_text
from l2c.io.bundled import at_home
from l2c.io.lazy import needed
from l2c.io.names import quoted, shown
from l2c.io.numbers import truth_value

FILE = "cache_graph.json"
REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
PICTURES = (".png", ".svg", ".jpg")

Graph = TypeVar("Graph", bound=GraphFields)


def find_file(repo: str | Path, name: str, *, revision: str | None = None) -> Path:
    """Return a file of a local folder, or of a Hub repository, downloaded once.

    Raises:
        FileNotFoundError: if the folder has no such file.
        OSError: if it is no folder, and the Hub has no such repository, file or revision, or cannot be reached.
        ValueError: if huggingface_hub is not installed.

    """
    if (folder := at_home(repo)).is_dir():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"the folder {shown(repo, 300)} has no {name}; give the folder that save_pretrained wrote"
            )
        return path
    if not REPOSITORY.fullmatch(str(repo)):
        raise FileNotFoundError(
            f"no {name} at {shown(repo, 300)}: it is no folder here, and no name of a repository of the Hub, "
            "OWNER/NAME; check the path"
        )
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(str(repo), name, revision=revision))
    except Exception as error:  # the Hub's client has many; those of requests among them
        raise OSError(
            f"no {name} at {shown(repo, 300)}: it is no folder here, and the Hub says {type(error).__name__}; "
            "check the name, the revision and the connection"
        ) from error


def upload(folder: Path, repo: str, *, private: bool, token: str | None, message: str) -> str:
    """Send a folder to a Hub repository, which is created where it does not exist; return its address.

    Raises:
        OSError: if the Hub cannot be reached, or refuses.
        ValueError: if huggingface_hub is not installed.

    """
    hub = _hub()
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:
        raise OSError(
            f"cannot push to {repo}: {type(error).__name__}; log in with `hf auth login` and check the name"
        ) from error
    return str(commit)


def repository(name: str, value: Any) -> str:
    """Return the name of a Hub repository.

    Raises:
        ValueError: if it is none.

    """
    if not REPOSITORY.fullmatch(text(name, value)):
        raise ValueError(
            f"{name} must be the name of a repository of the Hub, OWNER/NAME in letters, digits, '-', '_' and '.', "
            f"got {quoted(value)}"
        )
    return str(value)


def save_pretrained(graph: GraphFields, folder: str | Path, *, files: Iterable[str | Path] = ()) -> None:
    """Write `cache_graph.json`, a model card and copies of files (pictures, reports) into a folder.

    Raises:
        FileNotFoundError: if one of the files is no plain file.
        OSError: if the folder cannot be made or written.
        ValueError: if files is no list.

    """
    folder = at_home(folder)
    names = []
    for file in map(at_home, each("files", files)):
        copy_file(file, folder / file.name)
        names.append(file.name)
    write_text(folder / "README.md", card(graph, names))
    graph_file.save(graph, folder / FILE)


@takes(repo=repository, private=truth_value, token=text)
def push_to_hub(
    graph: GraphFields,
    repo: str,
    *,
    files: Sequence[str | Path] = (),
    private: bool = False,
    token: str | None = None,
) -> str:
    """Send what `save_pretrained` writes to a Hub repository; return the address of the commit.

    Raises:
        OSError: if the Hub cannot be reached, or refuses.
        ValueError: if an argument is of another type, or huggingface_hub is not installed.

    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(graph, folder, files=files)
        return upload(Path(folder), repo, private=private, token=token, message=f"Graph for {shown(graph.model)}")


@takes(revision=text)
def from_pretrained(load: Callable[[Path], Graph], repo: str | Path, *, revision: str | None = None) -> Graph:
    """Read the graph of a Hub repository, or of a folder that `save_pretrained` wrote, with its correction.

    Args:
        load: reads a graph, `CacheGraph.load`.
        repo: the folder, or the name of the repository.
        revision: revision of the repository; None = the newest.

    Raises:
        OSError: if there is none, or the Hub cannot be reached.
        ValueError: if the file is damaged; see `CacheGraph.load`.

    """
    graph = load(find_file(repo, FILE, revision=revision))
    if graph.correction is not None:  # the Hub keeps the files of one revision side by side
        path = find_file(repo, graph.correction.path.name, revision=revision)
        graph = dataclasses.replace(graph, correction=dataclasses.replace(graph.correction, path=path))
    return graph


def card(graph: GraphFields, files: Sequence[str] = ()) -> str:
    """Return a model card in Markdown: what the graph is for, its figures, how to use it.

    Args:
        graph: the graph.
        files: names of the files beside the card; pictures are shown.

    """
    title = f"Cache graph for {shown(graph.model)}, {shown(graph.solver)}, {graph.num_evaluations} evaluations"
    kinds = {"attn": "removed_fraction_attention", "mlp": "removed_fraction_mlp"}
    absent = {figure for kind, figure in kinds.items() if not layers_of(kind, graph.layers)}
    figures = "\n".join(
        f"| {shown(key.replace('_', ' '))} | {f'{value:.4g}' if isinstance(value, float) else shown(value)} |"
        for key, value in statistics_of(graph).items()
        if key not in absent
    )
    pictures = "\n".join(f"![{name}]({name})" for name in files if Path(name).suffix in PICTURES)
    idle = ", and which do not run (`-`) because the whole output is reused" if ends_in_output(graph.layers) else ""
    return f"""---
library_name: l2c
tags: [diffusion, caching, cache-graph]
---

# {title}

A cache graph of l2c: which layers are computed (`#`) and reused (`.`) at each evaluation{idle}. It holds no weights,
and is refused by a model or sampler that it was not made for. To use it, install l2c with `pip install .` from a
clone of its repository.

```
{summary(graph)}
```

{pictures}

| figure | |
|---|---|
{figures}

```python
import l2c

graph = l2c.CacheGraph.from_pretrained("this repository")
l2c.Sampler(backbone, graph=graph)                                   # a backbone of l2c
l2c.apply(pipe, graph)                                               # a diffusers pipeline
```

Made with:

```json
{json.dumps(dict(graph.provenance), indent=1, ensure_ascii=False)}
```
"""


def _hub() -> Any:
    with needed("huggingface_hub", "the Hub needs"):
        import huggingface_hub
    return huggingface_hub
