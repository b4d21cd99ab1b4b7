"""Run commands in forked children of a warm process: the state of the parent stays, a hang or a kill hurts nobody."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from file_server import Server

from l2c.io.digests import sha256_of

ROOT = Path(__file__).resolve().parents[2]
PIPE = 2**20  # bytes of output that are kept


@dataclass(frozen=True)
class Ended:
    """What a child left: its exit code (negative = a signal's number), its stdout and stderr, the seconds it took."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def sentence(self) -> str | None:
        """The one sentence of a refusal; None where the child did not end in one."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[0] if self.code == 1 and len(lines) == 1 and "Traceback" not in self.err else None


@dataclass(frozen=True)
class Child:
    """A running child: its number, and where its stdout and stderr are read."""

    number: int
    outputs: tuple[int, int]
    begin: float

    def wait(self, seconds: float = 120.0) -> Ended:
        """Wait for the end; after some seconds the child is killed, with the processes that it started."""
        handle = os.pidfd_open(self.number)
        if not select.select([handle], [], [], seconds)[0]:
            os.killpg(self.number, signal.SIGKILL)
        _, status = os.waitpid(self.number, 0)
        os.close(handle)
        texts = []
        for output in self.outputs:
            os.set_blocking(output, False)
            with contextlib.suppress(BlockingIOError):
                texts.append(os.read(output, PIPE).decode(errors="replace"))
            os.close(output)
        return Ended(os.waitstatus_to_exitcode(status), *texts, time.monotonic() - self.begin)

    def kill_after(self, seconds: float) -> Ended:
        """Kill the child with SIGKILL after some seconds, unless it has ended."""
        return self.wait(seconds)

    def signal_after(self, seconds: float, number: int) -> Ended:
        """Send the child a signal after some seconds, unless it has ended, and wait for its end."""
        handle = os.pidfd_open(self.number)
        if not select.select([handle], [], [], seconds)[0]:
            os.kill(self.number, number)
        os.close(handle)
        return self.wait()


def command(arguments: Sequence[str]) -> Callable[[], None]:
    """Return the function that runs `l2c ARGUMENTS` in this process."""

    def run() -> None:
        if arguments[0] == "download-emoji":
            _take_any_package(arguments)
        sys.argv = [str(ROOT / "l2c" / "__main__.py"), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")

    return run


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}
CHANGED = "changed: "  # a line of stderr


def noting_changes(work: Callable[[], None], *, kill_before: int | None = None) -> Callable[[], None]:
    """Return work that tells each change of the files below its folder on stderr, or kills its process before one.

    Args:
        work: what is done, in a child of `start`.
        kill_before: the number of that change, from 0; None = it works to its end.

    """

    def noted() -> None:
        folder, told = Path.cwd(), []

        def hook(event: str, values: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(values[2], int) and values[2] & WRITES
            if not (writes or event in CHANGES):
                return
            name = values[1] if event in ("os.rename", "os.link") else values[0]  # the new one
            if not isinstance(name, (str, bytes, os.PathLike)):
                return
            path = folder / os.fsdecode(name)
            if path.is_relative_to(folder):
                if len(told) == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                told.append(f"{CHANGED}{event} {path.relative_to(folder)}")

        sys.addaudithook(hook)
        try:
            work()
        finally:
            sys.stderr.write("\n".join(["", *told, ""]))

    return noted


def changes_of(ended: Ended) -> list[str]:
    """Return the changes that the work of `noting_changes` has told, each with the file's name behind."""
    return [line.removeprefix(CHANGED) for line in ended.err.splitlines() if line.startswith(CHANGED)]


def _take_any_package(arguments: Sequence[str]) -> None:
    """Let the packages that `download-emoji` is given be the known ones; its file goes into the folder `run`."""
    from l2c.testbeds import emoji

    os.environ["L2C_CACHE"] = "run"
    given = dict(word.removeprefix("--").split("=") for word in arguments[1:])
    for name in ("pictures", "names"):
        digest = sha256_of(Path(given[name])) if Path(given[name]).is_file() else ""
        setattr(emoji, name.upper(), emoji.Package("http://127.0.0.1:1/none.tgz", digest))


@contextlib.contextmanager
def slow_server() -> Iterator[str]:
    """Serve a file in a child, slowly enough to be killed in between; yield its address."""
    server = Server()
    server.pause = 0.02
    child = start(server.serve_forever, Path())
    server.server_close()
    yield server.url
    child.kill_after(0)


def warm() -> None:
    """Load in this process what commands load, so that children need not."""
    import matplotlib.pyplot  # noqa: F401

    import l2c.commands.frame.entry
    import l2c.commands.frame.start
    import l2c.commands.train_router
    import l2c.testbeds.classifier_run  # noqa: F401


def start(
    work: Callable[[], object], folder: Path, *, memory: int | None = None, file_size: int | None = None
) -> Child:
    """Start work in a child whose current folder is `folder`.

    Args:
        work: is called; an exception prints its traceback and ends the child with code 70.
        folder: is made.
        memory: bytes of address space that the child may take beyond what it has.
        file_size: bytes that a file may grow to, as on a full disk.

    """
    folder.mkdir(parents=True, exist_ok=True)
    pipes = os.pipe(), os.pipe()
    for _, end in pipes:
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE)
    begin, number = time.monotonic(), os.fork()
    if number:
        for _, end in pipes:
            os.close(end)
        with contextlib.suppress(OSError):
            os.setpgid(number, number)
        return Child(number, (pipes[0][0], pipes[1][0]), begin)
    code, most = 70, resource.getrlimit(resource.RLIMIT_AS)[1]
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests behind it
        # Python renames bytecode that a limit has cut short to its place, where all later imports of it fail.
        sys.dont_write_bytecode = True
        for (_, end), place in zip(pipes, (1, 2), strict=True):
            os.dup2(end, place)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1, encoding="utf-8") for n in (1, 2))
        os.chdir(folder)
        if memory is not None:
            limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        if file_size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        work()
        code = 0
    except SystemExit as stop:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # what is told here takes memory too
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
    except BaseException:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(arguments: Sequence[str], folder: Path, *, seconds: float = 300.0, **limits: int) -> Ended:
    """Run `l2c ARGUMENTS` in a child from a folder; see `start` for the limits."""
    return start(command(arguments), folder, **limits).wait(seconds)
