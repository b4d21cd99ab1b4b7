"""The parser of commands without a Hydra config: a wrong argument is one sentence, as everywhere else."""

from __future__ import annotations

import argparse
from typing import NoReturn

from l2c.commands.frame.table import spelled


class Arguments(argparse.ArgumentParser):
    """A parser that raises its errors; `start` prints them.

    Args:
        name: the command.
        description: what it does.

    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=spelled(name), description=description)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments.

        Raises:
            ValueError: always.

        """
        raise ValueError(f"{message}; {self.prog} --help lists the arguments")
