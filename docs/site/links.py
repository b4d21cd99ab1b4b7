"""A hook of the site: README and CONTRIBUTING lie above the docs, so their links are turned to the docs' own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ABOVE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "weights.md": "checkpoints/README.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page of the site, taken from above where it lies there."""
    name = page.file.src_uri
    if name not in ABOVE:
        return markdown
    text = (ROOT / ABOVE[name]).read_text(encoding="utf-8")
    text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
    text = text.replace("](checkpoints/README.md)", "](weights.md)")
    return re.sub(r"<!-- [^>]* -->\n", "", text)
