"""Training of routers (and of the small bundled backbones) with Lightning."""
