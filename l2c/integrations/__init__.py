"""Files and models of other projects; the modules load when they are first used."""

from l2c.io.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__, {})
