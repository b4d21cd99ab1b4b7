"""Files, downloads, seeds, memory."""
