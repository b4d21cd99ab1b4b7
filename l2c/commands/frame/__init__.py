"""What all commands share: the table of them, their config and its checks, how errors end."""
