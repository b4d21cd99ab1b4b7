"""Files and models of other projects; the modules load when they are first used."""

from l2c.io.lazy import lazy_names
from l2c.io.torchvision_stand_in import make_importable

__getattr__, __dir__ = lazy_names(__name__, {})

make_importable()  # transformers, and with it each pipeline, imports torchvision
