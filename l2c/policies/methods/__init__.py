"""Methods of the literature and plain rules, each one a policy."""
