"""Folders and Hub repositories that hold a file of ours with a card; huggingface_hub is imported where needed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from l2c.graph.correction_file import CorrectionFile
from l2c.io.atomic import replacing

T = TypeVar("T", bound="OnHub")

PICTURES = (".png", ".svg", ".jpg")


def find_file(repo: str | Path, name: str, *, revision: str | None = None) -> Path:
    """Return a file of a local folder, or of a Hub repository, downloaded once.

    Raises:
        FileNotFoundError: the folder has no such file.
        OSError: it is no folder, and the Hub has no such repository, file or revision, or cannot be reached.
        ValueError: huggingface_hub is not installed.

    """
    if Path(repo).is_dir():
        path = Path(repo) / name
        if not path.is_file():
            raise FileNotFoundError(f"the folder {repo} has no {name}; give the folder that save_pretrained wrote")
        return path
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(str(repo), name, revision=revision))
    except Exception as error:  # the Hub's client has many; those of requests among them
        raise OSError(
            f"no {name} at {repo}: it is no folder here, and the Hub says {type(error).__name__}; "
            "check the name, the revision and the connection"
        ) from error


def upload(folder: Path, repo: str, *, private: bool, token: str | None, message: str) -> str:
    """Send a folder to a Hub repository, which is created where it does not exist; return its address.

    Raises:
        OSError: the Hub cannot be reached, or refuses.
        ValueError: huggingface_hub is not installed.

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


def copy_files(files: Iterable[str | Path], folder: Path) -> list[str]:
    """Copy files beside the card; return their names."""
    names = []
    for file in map(Path, files):
        shutil.copyfile(file, folder / file.name)
        names.append(file.name)
    return names


def card(
    *,
    title: str,
    summary: str,
    statistics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    files: Sequence[str] = (),
) -> str:
    """Return a model card in Markdown: what the graph is for, its figures, how to use it."""
    figures = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in statistics.items())
    pictures = "\n".join(f"![{name}]({name})" for name in files if Path(name).suffix in PICTURES)
    return f"""---
library_name: l2c
tags: [diffusion, caching, cache-graph]
---

# {title}

A cache graph of l2c: which layers are computed (`#`) and reused (`.`) at each
evaluation. It holds no weights, and is refused by a model or sampler that it was not made for.

```
{summary}
```

{pictures}

| figure | |
|---|---|
{figures}

```python
graph = l2c.CacheGraph.from_pretrained("this repository")
l2c.Sampler(backbone, graph=graph)                                   # a backbone of l2c
l2c.integrations.diffusers.apply_cache_graph(pipe, graph)            # a diffusers pipeline
```

Made with:

```json
{json.dumps(dict(provenance), indent=1, ensure_ascii=False)}
```
"""


class OnHub(ABC):
    """A graph as a folder with a model card, here or on the Hub."""

    FILE: ClassVar[str] = "cache_graph.json"

    model: str
    solver: str
    provenance: Mapping[str, Any]
    correction: CorrectionFile | None

    @property
    @abstractmethod
    def num_evaluations(self) -> int:
        """Number of evaluations of the trajectory."""

    @property
    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Figures for the card."""

    @abstractmethod
    def summary(self) -> str:
        """Return a few lines for people."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the file."""

    @classmethod
    @abstractmethod
    def load(cls: type[T], path: str | Path) -> T:
        """Read the file."""

    @abstractmethod
    def replace(self: T, **changes: Any) -> T:
        """Return a copy with some fields changed."""

    def save_pretrained(self, folder: str | Path, *, files: Sequence[str | Path] = ()) -> None:
        """Write `cache_graph.json`, a model card and copies of `files` (pictures, reports) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = copy_files(files, folder)
        title = f"Cache graph for {self.model}, {self.solver}, {self.num_evaluations} evaluations"
        with replacing(folder / "README.md") as temporary:
            text = card(
                title=title,
                summary=self.summary(),
                statistics=self.statistics,
                provenance=self.provenance,
                files=names,
            )
            temporary.write_text(text, encoding="utf-8")
        self.save(folder / self.FILE)

    def push_to_hub(
        self, repo: str, *, files: Sequence[str | Path] = (), private: bool = False, token: str | None = None
    ) -> str:
        """Send what `save_pretrained` writes to a Hub repository; return the address of the commit.

        Raises:
            OSError: the Hub cannot be reached, or refuses.
            ValueError: huggingface_hub is not installed.

        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, files=files)
            return upload(Path(folder), repo, private=private, token=token, message=f"Graph for {self.model}")

    @classmethod
    def from_pretrained(cls: type[T], repo: str | Path, *, revision: str | None = None) -> T:
        """Read the graph of a Hub repository, or of a folder that `save_pretrained` wrote, with its correction.

        Raises:
            OSError: there is none, or the Hub cannot be reached.
            ValueError: the file is damaged; see `load`.

        """
        graph = cls.load(find_file(repo, cls.FILE, revision=revision))
        if graph.correction is not None:  # the Hub keeps the files of one revision side by side
            path = find_file(repo, graph.correction.path.name, revision=revision)
            graph = graph.replace(correction=dataclasses.replace(graph.correction, path=path))
        return graph


def _hub() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ValueError(
            "the Hub needs the package huggingface_hub; run pip install '.[diffusers]' in a clone of l2c"
        ) from error
    return huggingface_hub
