"""Parts that all commands share: the table of commands, their configuration and its checks, error messages."""
