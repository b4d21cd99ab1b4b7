"""`l2c COMMAND`: the list, names, lines to paste, and settings of a wrong kind in one sentence."""

import ast
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

import l2c
from l2c.commands import download_weights
from l2c.commands.frame import start
from l2c.commands.frame.interrupts import interrupts_kept
from l2c.commands.frame.sentences import sentence_of
from l2c.commands.frame.table import COMMANDS, command_line, override, python_line, spelled, this_command_line

ROOT = Path(__file__).resolve().parents[2]
MAIN = "l2c/__main__.py"


def test_the_list_names_every_command_once(call):
    shown = call(MAIN, "--help").stdout
    for name, command in COMMANDS.items():
        assert sum(line.split()[:1] == [name] for line in shown.splitlines()) == 1
        assert command.summary in shown
    assert call(MAIN).stdout == shown
    assert call(MAIN, "--version").stdout == f"l2c {l2c.__version__}\n"


def test_commands_have_modules_configs_and_scripts():
    for name, command in COMMANDS.items():
        module = import_module(f"l2c.commands.{command.module}")
        assert callable(module.main.task if command.hydra else module.main)
        assert not command.hydra or (ROOT / "configs" / f"{command.module}.yaml").is_file()
        if command.script is not None:
            assert f'script("{name}")' in (ROOT / command.script).read_text()
    scripts = {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")} | {"train_router.py"}
    assert {command.script for command in COMMANDS.values()} - {None} == scripts


def test_an_unknown_command_is_told_near_ones(call, refused):
    assert "unknown command 'evaluat'; did you mean evaluate" in refused(call(MAIN, "evaluat", "graph=x"))


@pytest.mark.parametrize("command", ["show", "download"])
def test_a_missing_argument_is_one_sentence(command, call, refused):
    sentence = refused(call(MAIN, command))
    assert f"arguments are required: {'graph' if command == 'show' else 'name'}; " in sentence
    assert sentence.endswith(f"l2c {command} --help lists the arguments")


def test_help_explains_settings_and_groups(call):
    page = call(MAIN, "train", "router=harmonica", "--help").stdout
    assert re.search(
        r"\n  threshold: 0\.5 +# compute where sigmoid\(logit\) > threshold\n", page
    )  # of the l2c it begins with
    assert re.search(r"\n  learning_rate: 0\.05 +# 0\.2 of l2c", page)
    assert re.search(r"\nresume: null +# a last\.ckpt to continue", page)
    assert "\n  cfg_scale: ${oc.select:model.sampling.cfg_scale,null}\n" in page
    assert "\nrouter=harmonica\n    budget, harmonica, l2c," in page
    assert "\npolicy" not in page
    assert "\nhydra" not in page


def test_unknown_options_are_told_near_ones(call, refused):
    assert "unknown option '--hlep'; did you mean --help" in refused(call(MAIN, "train", "--hlep"))


def test_flags_may_stand_between_settings(call, refused, tmp_path):
    settings = [f"hydra.sweep.dir={tmp_path}", "policy=interval", "-m", "policy.n=2,3"]
    assert call(MAIN, "graph", *settings, "budget=null").returncode == 0
    assert len(list(tmp_path.glob("*/cache_graph.json"))) == 2
    for wrong in (["--cfg"], ["budget=0.5", "--cfg", "zzz"]):
        assert "argument --cfg/-c: " in refused(call(MAIN, "graph", *wrong))


def test_a_comma_in_a_value_is_told_its_quotes(call, refused):
    assert "holds a comma: a value with one stands in quotes" in refused(call(MAIN, "sample", "labels=1,2"))


def test_show_names_the_file_that_it_cannot_read(call, refused, tmp_path):
    (tmp_path / "bad.json").write_text('{"a": 1e999}', encoding="utf-8")
    assert "bad.json: the number 1e999 is too large" in refused(call(MAIN, "show", tmp_path / "bad.json"))


@pytest.mark.parametrize("line", [("show", "nowhere.json"), ("download", "nowhere")])
def test_commands_without_a_config_say_one_sentence_or_raise(call, refused, line, monkeypatch):
    assert "nowhere" in refused(call(MAIN, *line))
    monkeypatch.setenv("L2C_TRACEBACK", "1")
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        call(MAIN, *line)


@pytest.mark.parametrize("name", ["graph", "sample-many", "encode"])
def test_help_spells_its_examples_as_the_command_was_started(call, name):
    started, scripted = call(MAIN, name, "--help").stdout, call(COMMANDS[name].script, "--help").stdout
    assert f"  python -m l2c {name} " in started
    assert f"  python {COMMANDS[name].script} " in scripted


@pytest.mark.parametrize(
    ("started", "line"),
    [
        ("/usr/bin/l2c", "l2c graph"),
        ("/site-packages/l2c/__main__.py", "python -m l2c graph"),
        ("scripts/calibrate.py", "python scripts/make_graph.py"),
    ],
)
def test_lines_are_spelled_as_the_process_was_started(monkeypatch, started, line):
    monkeypatch.setattr(sys, "argv", [started, "x=a b"])
    assert spelled("graph") == line
    assert this_command_line().endswith("'x=a b'")


def test_scripts_are_named_only_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / "calibrate.py")])
    monkeypatch.chdir(ROOT)
    assert spelled("graph") == "python scripts/make_graph.py"
    monkeypatch.chdir(tmp_path)
    assert spelled("graph") == "l2c graph"


def test_a_pipelines_next_line_is_python_whatever_the_path_holds():
    path = Path("it's/a \\ graph.json")
    (argument,) = ast.parse(python_line(path)).body[0].value.args[1].args
    assert ast.literal_eval(argument) == str(path)


@pytest.mark.parametrize(
    "path",
    ["runs/a=1,b=2/g.json", "my runs/g.json", "it's/\\g.json", "a'b\\'c\\", "plain/g.json", "{x}/[y]", "$HOME/~"],
)
def test_paths_survive_the_shell_and_hydra(path):
    line = command_line("evaluate", "model=dit_digits", "", graph=Path(path), labels=None)
    words = shlex.split(line)
    assert words[-2] == "model=dit_digits"
    (parsed,) = OverridesParser.create().parse_overrides([words[-1]])
    assert (parsed.key_or_group, parsed.value()) == ("graph", str(Path(path)))
    assert OverridesParser.create().parse_override(override("x", path)).value() == path


def test_a_wrong_setting_ends_its_own_job_of_a_sweep(call, tmp_path):
    sweep = f"hydra.sweep.dir={tmp_path}"
    result = call(MAIN, "graph", "-m", "policy=interval", "policy.n=2,oops,4", sweep)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert errors == [
        "error: job 1: policy.n must be a number >= 1, got 'oops'; e.g. policy.n=2",
        "error: 1 job of the sweep failed; the others are done",
    ]
    assert [(tmp_path / job / "cache_graph.json").is_file() for job in "012"] == [True, False, True]


def test_running_out_of_memory_says_what_takes_less(call, refused, monkeypatch, tmp_path):
    def task(cfg):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(import_module("l2c.commands.calibrate").main, "task", task)
    sentence = refused(call("scripts/calibrate.py", f"hydra.run.dir={tmp_path / 'run'}", "batch_size=4"))
    assert "out of memory while calibrating; say a smaller batch_size (now 4)" in sentence


def test_show_prints_and_draws(call, refused, tmp_path):
    picture = tmp_path / "graph.svg"
    result = call(MAIN, "show", "dit_digits_ddim20", f"output={picture}")
    assert result.returncode == 0, result.stderr
    for _ in range(2):  # its own picture is drawn again
        assert call(MAIN, "show", "dit_digits_ddim20", f"output={tmp_path / 'graph.pdf'}").returncode == 0
    assert "20 evaluations" in result.stdout
    assert "<svg" in picture.read_text()
    assert "must end in .png, .svg or .pdf" in refused(call(MAIN, "show", "dit_digits_ddim20", "output=a.txt"))
    assert "neither a file nor a bundled graph" in refused(call(MAIN, "show", "dit_digit"))
    assert "say output=PATH" in refused(call(MAIN, "show", "dit_digits_ddim20", "a.png"))


def test_routers_of_every_preset_and_solver_are_imported(call, refused, tmp_path):
    file = tmp_path / "r.pt"
    cases = (("dit_xl2", "auto", 56, 10), ("uvit_h2", "auto", 58, 9), ("dit_b4", "dpm_solver_2m", 24, 10))
    for preset, solver, num_layers, num_routed in cases:
        routers = {f"{i}.prob": torch.randn(num_layers) for i in range(20)}
        torch.save(routers if preset == "uvit_h2" else {"routers": routers}, file)
        given = [f"file={file}", f"model={preset}", f"solver={solver}", "num_evaluations=20", "threshold=0.1"]
        result = call(MAIN, "import", *given, f"output={tmp_path / 'g.json'}")
        assert result.returncode == 0, result.stderr
        graph = l2c.CacheGraph.load(tmp_path / "g.json")
        assert (graph.model, graph.num_layers, len(graph.routed)) == (preset, num_layers, num_routed)
    routers["2.prob"][3] = float("nan")
    torch.save({"routers": routers}, file)
    assert "logits in router '2.prob' that are no finite numbers" in refused(
        call(MAIN, "import", *given, f"output={tmp_path / 'h.json'}")
    )


def test_import_reads_or_refuses_settings_of_the_solver(call, refused, tmp_path):
    file = tmp_path / "r.pt"
    torch.save({"routers": {f"{i}.prob": torch.randn(56) for i in range(20)}}, file)
    given = [f"file={file}", "threshold=0.1", f"output={tmp_path / 'g.json'}"]
    result = call(MAIN, "import", *given, "solver.num_evaluations=20")
    assert result.returncode == 0, result.stderr
    assert l2c.CacheGraph.load(tmp_path / "g.json").num_evaluations == 20
    for more, sentence in (
        (("solver.num_evaluations=20", "num_evaluations=50"), "=50 and solver.num_evaluations=20 differ"),
        (("num_evaluations=20", "solver.cfg_scale=2"), "solver.cfg_scale is not read by l2c import"),
        ((), "a router file needs num_evaluations"),
    ):
        assert sentence in refused(call(MAIN, "import", *given, *more))
    schedule = call(MAIN, "import", "file=s.json", "solver.num_evaluations=20")
    assert "a schedule says its evaluations itself" in refused(schedule)


@pytest.mark.parametrize("checkpoint", ["null", "random"])
def test_a_graph_is_timed_on_its_own_weights_or_on_random_ones(call, tmp_path, checkpoint):
    few = ["graph=dit_digits_ddim20", "mode=[eager]", "repetitions=1", f"hydra.run.dir={tmp_path}"]
    result = call(MAIN, "benchmark", *few, f"checkpoint={checkpoint}")
    assert result.returncode == 0, result.stderr
    graph = l2c.CacheGraph.load("dit_digits_ddim20")
    rows = ["".join("01"[bit] for bit in row) for row in graph.rows]
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert "python -m l2c benchmark graph=dit_digits_ddim20" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "started",
    [("-m", "l2c", "graph", "policy=interval"), (str(ROOT / "train_router.py"), "--help")],
    ids=["-m l2c", "train_router.py"],
)
def test_a_reader_that_hangs_up_ends_a_command_quietly(tmp_path, started, unbuffered):
    process = subprocess.Popen(
        [sys.executable, *started],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("l2c --version >&-", 0, ""),
        ("l2c --version <&- >&- 2>&-", 0, ""),
        ("l2c nothing 2>&-", 1, ""),
        ("l2c --version >/dev/full", 1, "error: cannot print: No space left on device; send the output to another"),
        ("MPLBACKEND=x l2c graph policy=interval >/dev/full", 1, "error: cannot print: No space left on device"),
        ("l2c nothing >/dev/full", 1, "error: unknown command 'nothing'; "),
        ("rmdir $PWD; l2c --version", 1, "error: the current folder is gone; go to another one"),
        ("rmdir $PWD; l2c graph policy=interval", 1, "error: the current folder is gone; go to another one"),
    ],
)
def test_what_a_shell_leaves_a_command_is_taken(tmp_path, line, code, words):
    folder = tmp_path / "here"
    folder.mkdir()
    started = f'l2c() {{ "{sys.executable}" -m l2c "$@"; }}; {line}'
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        ["bash", "-c", started], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(words)
    assert ended.stderr.count("\n") == bool(words)


def test_a_name_of_a_download_of_its_own_is_told_its_command():
    with pytest.raises(ValueError, match=r"^emoji has .*download.emoji.* \(fetch .*; unknown model 'emoji'; did"):
        download_weights.main(["emoji"])
    with pytest.raises(ValueError, match=r"^unknown model 'emojis'; did you mean dit_emoji"):
        download_weights.main(["emojis"])


class FullDisk(io.FileIO):
    """A file that no byte fits in."""

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("where", ["pipe", "same disk", "other disk"])
def test_a_full_disk_is_told_of_the_output_and_of_the_folder(monkeypatch, tmp_path, where, unbuffered):
    """Nothing is written to see which of them is full, and no descriptor stays open."""
    reader, writer = os.pipe()
    raw = io.FileIO(writer, "w") if where == "pipe" else FullDisk(tmp_path / "out", "w")
    out = io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw), write_through=unbuffered)
    error = OSError(errno.ENOSPC, "No space left on device")
    if where != "pipe":
        with pytest.raises(OSError, match="No space left"):
            print("said", file=out, flush=True)
    folder = Path("/proc") if where == "other disk" else tmp_path
    free = os.dup(reader)
    os.close(free)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        said = sentence_of(error, folder)
    assert os.dup(reader) == free
    os.close(free)
    if where == "pipe":
        assert said.startswith(f"No space left on device, in {folder}; ")
        raw.close()
        assert os.read(reader, 1) == b""
    elif where == "other disk" and not unbuffered:
        assert said == "cannot print: No space left on device; send the output to another place"
    else:
        assert said.startswith(f"cannot print, or cannot write in {folder}: No space left on device; send the output")
        assert said.endswith("hydra.run.dir=PATH")
    os.close(reader)


def test_a_stdout_of_few_characters_escapes_the_others(monkeypatch):
    few = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", few)
    start._make_ready()
    print("wrote größe\udcff.png")
    few.flush()
    assert few.buffer.getvalue() == rb"wrote gr\xf6\xdfe\udcff.png" + b"\n"


def test_the_home_folder_is_known_behind_a_sign_too(monkeypatch, tmp_path, call, refused):
    monkeypatch.setenv("HOME", str(tmp_path / "a b"))
    assert start._at_home("output=~/x.png") == f"output='{tmp_path}/a b/x.png'"
    assert start._at_home("hydra.run.dir=~") == f"hydra.run.dir='{tmp_path}/a b'"
    both = start._at_home("graph=[~/x.json,b.json]"), start._at_home("graph=~/x.json,~/y.json")
    home = f"'{tmp_path}/a b"
    assert both == (f"graph=[{home}/x.json',b.json]", f"graph={home}/x.json',{home}/y.json'")
    for word in ("~policy", "policy.alpha=0.2", "output=a~b", "output=~x~/y", "--help"):
        assert start._at_home(word) == word
    sentence = refused(call(MAIN, "show", "dit_digits_ddim20", "output=~nobody-of-this-name/x.png"))
    assert sentence == "error: no home folder is known for ~nobody-of-this-name/x.png; give the whole path"


def test_show_leaves_what_is_not_its_own(command, refused, tmp_path):
    graph = tmp_path / "photo.json"
    l2c.CacheGraph.load("dit_digits_ddim20").save(graph)
    (tmp_path / "photo.png").write_bytes(b"a photograph")
    sentence = refused(command("show", graph, cwd=tmp_path))
    assert "output is photo.png, where something else is that would be lost" in sentence
    assert (tmp_path / "photo.png").read_bytes() == b"a photograph"
    graph.rename(tmp_path / "graph.png")
    sentence = refused(command("show", "graph.png", "output=graph.png", cwd=tmp_path))
    assert "output and graph are one file, graph.png, which would be lost; give another output" in sentence
    sentence = refused(command("import", "graph=graph.png", "output=./graph.png", cwd=tmp_path))
    assert "output and graph are one file" in sentence
    assert l2c.CacheGraph.load(tmp_path / "graph.png")


def test_an_interrupt_while_a_command_loads_is_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "start", interrupted)
    monkeypatch.setattr(sys, "argv", ["l2c", "graph"])
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.fixture
def interruptible():
    """Let Ctrl-C be what it is in a terminal; a shell that runs the tests behind it has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("made_of_it", [ValueError("the file is damaged"), None])
def test_an_interrupt_that_a_library_makes_something_else_of_stays_one(made_of_it):
    """Safetensors says that a file is damaged, omegaconf that a setting does not exist; destructors say nothing."""

    def library():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            if made_of_it:
                raise made_of_it from None

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        library()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="its own"), interrupts_kept():
        raise ValueError("its own")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_a_command_is_told_as_one(monkeypatch, command, tmp_path):
    def damaged(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException as error:
            raise ValueError("it is damaged") from error

    monkeypatch.setattr(l2c.CacheGraph, "load", damaged)
    for arguments in (("show", "dit_digits_ddim20"), ("sample", "graph=dit_digits_ddim20", "hydra.run.dir=run")):
        ended = command(*arguments, cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (130, "error: interrupted\n")


def test_a_number_that_a_library_cannot_read_names_its_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("A_LIBRARYS_OWN", "zzz")
    for error in ("invalid literal for int() with base 10: 'zzz'", "could not convert string to float: 'zzz'"):
        said = sentence_of(ValueError(error), tmp_path)
        assert said == "the environment variable A_LIBRARYS_OWN must be a number, got 'zzz'; unset it"
    assert "environment" not in sentence_of(ValueError("could not convert string to float: 'yyy'"), tmp_path)
