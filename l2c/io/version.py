"""The version of this package: read by `l2c.__version__`, by provenance and by the build; and that of its code."""

from __future__ import annotations

import functools

__version__ = "0.1.0"

# The rooms whose code decides on calibrations, graphs, errors and images.
DECIDING = (
    *("graph", "diffusion", "backbones", "sampling", "calibration", "policies", "integrations", "pipelines"),
    *("evaluation", "drawing", "data"),
)


@functools.cache
def code_version() -> str:
    """Return the version with a digest of the code that decides on results, `0.1.0, code 1a2b3c4d5e6f`.

    What is kept on disk for later and depends on defaults or methods says by it what made it: between two versions
    the code of a checkout changes. Comments, docstrings and line breaks do not count. Without source files it is the
    version alone.
    """
    import hashlib
    from pathlib import Path

    package = Path(__file__).resolve().parents[1]
    files = {
        path.relative_to(package).as_posix(): path.read_bytes()
        for room in DECIDING
        for path in sorted((package / room).rglob("*.py"))
    }
    text = "".join(f"{name}:{plain_code(code)}\n" for name, code in files.items())
    return f"{__version__}, code {hashlib.sha256(text.encode()).hexdigest()[:12]}" if files else __version__


def plain_code(code: bytes | str) -> str:
    """Return what code does, the same for every version of Python and any comments, docstrings and line breaks."""
    import ast

    return _plain(ast.parse(code))


def _plain(node: object) -> str:
    """Return a part of a syntax tree as text, without empty fields, of which each version of Python has others."""
    import ast

    if isinstance(node, list):
        return f"[{','.join(map(_plain, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
        fields["body"] = node.body[1:]
    said = (f"{name}={_plain(value)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({','.join(said)})"
