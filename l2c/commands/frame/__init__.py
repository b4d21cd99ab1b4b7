"""Parts that all commands share: the table of commands, their config and its checks, the end of errors."""
