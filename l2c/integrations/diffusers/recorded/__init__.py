"""What a pipeline makes of prompts, recorded from its own calls."""
