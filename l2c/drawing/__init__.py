"""Many images drawn into a folder, by any number of processes."""
