"""Files and models of other projects."""
