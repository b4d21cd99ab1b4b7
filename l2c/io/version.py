"""The version of this package: read by `l2c.__version__`, by provenance and by the build."""

__version__ = "0.1.0"
