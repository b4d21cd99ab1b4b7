"""Small packages in the form of those that the emoji come in."""

import io
import json
import tarfile

from PIL import Image

ENTRIES = [
    {"unified": "1F600", "category": "Smileys & Emotion", "subcategory": "face-smiling"},
    {"unified": "2764-FE0F", "category": "Smileys & Emotion", "subcategory": "heart"},
    {
        "unified": "1F44B",
        "category": "People & Body",
        "subcategory": "hand-fingers-open",
        "skin_variations": {"1F3FB": {"unified": "1F44B-1F3FB"}},
    },
    {"unified": "1F522", "category": "Symbols", "subcategory": "alphanum"},
]


def packed(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def webp(colour, size=64):
    image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    image.paste(colour, (16, 16, 48, 48))
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


def packages_in(folder):
    """Write the two packages; return their paths."""
    files = {
        "assets/1f600.webp": webp((255, 200, 0, 255)),
        "assets/2764.webp": webp((255, 0, 0, 255)),  # without the mark that the other package has
        "assets/1f44b.webp": webp((250, 210, 0, 255)),
        "assets/1f44b-1f3fb.webp": webp((90, 60, 40, 255)),
        "assets/1f522.webp": webp((0, 0, 255, 255)),
        "assets/ffff.webp": webp((0, 255, 0, 255)),
        "README.md": b"read me",
    }
    names = {"emoji.json": json.dumps(ENTRIES).encode()}
    return packed(folder / "pictures.tgz", files), packed(folder / "names.tgz", names)
