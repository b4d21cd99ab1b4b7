"""What a CUDA device gives, measured part by part within a number of minutes: `python -m benchmarks.gpu --help`."""
