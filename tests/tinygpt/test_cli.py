"""The command line: flags, errors for users and for programmers, commands, and a standard output that goes away."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tinygpt import errors
from tinygpt.__main__ import COMMANDS
from tinygpt.arguments import expand_home, parse_args
from tinygpt.fields import PathName

ROOT = Path(__file__).parent.parent.parent
FOLDERS = (ROOT / "benchmarks", ROOT / "examples", ROOT / "examples" / "learn")
SHARED = ("train.py", "ngrams.py", "recurrent.py", "trained.py", "llama_cpp_vocabularies.py")  # by scripts of the path
SCRIPTS = [path for folder in FOLDERS for path in sorted(folder.glob("*.py")) if path.name not in SHARED]


def python(*arguments, cwd=None, check=False, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", check=check
    )


# Errors ---------------------------------------------------------------------------------------------------------------------


def ends(body, **variables):
    """How a script with this body ends."""
    return python("-c", f"import errno, numpy as np\nfrom tinygpt import cli, errors\ndef main():\n    {body}\ncli.run(main)", **variables)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise errors.InvalidInput('x: 1, expected 2')", "error: x: 1, expected 2"),
        ("raise errors.MissingFile('x: no such file')", "error: x: no such file"),
        ("open('/no/such/file')", "error: [Errno 2] No such file or directory: '/no/such/file'"),
        ("raise OSError(errno.ENOSPC, 'No space left on device')", "error: [Errno 28] No space left on device"),
        ("raise MemoryError", "error: out of memory"),
        ("from autograd import backend; np.empty(1 << 50)", "error: "),
    ],
)
def test_an_error_for_the_user_is_one_line(body, line):
    done = ends(body)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith(line), done.stderr


@pytest.mark.parametrize(
    "body", ["None + 1", "[][0]", "int('x')", "{}['x']", "1 / 0", "import no_such_module", "raise OSError('no number')"]
)
def test_a_bug_shows_its_traceback(body):
    done = ends(body)
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and "in main" in done.stderr


@pytest.mark.parametrize("variable", ["AUTOGRAD_BACKEND", "AUTOGRAD_KERNELS", "AUTOGRAD_DEBUG", "AUTOGRAD_TF32"])
def test_a_wrong_environment_variable_is_one_line_from_scripts_and_commands(tmp_path, variable):
    for arguments in ([ROOT / "examples/learn/08_model.py"], ["-m", "tinygpt", "exercise", "1"]):
        done = python(*arguments, cwd=tmp_path, **{variable: "2x"})
        assert done.returncode == 1 and done.stderr.startswith(f"error: {variable}: '2x', expected ") and done.stderr.count("\n") == 1


def test_debugging_shows_every_traceback():
    done = ends("raise errors.InvalidInput('x: 1, expected 2')", AUTOGRAD_DEBUG="1")
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and done.stderr.endswith("InvalidInput: x: 1, expected 2\n")


def test_user_errors_keep_the_kind_that_callers_catch():
    kinds = [cls for cls in vars(errors).values() if isinstance(cls, type) and cls is not errors.UserError]
    assert kinds
    for cls in kinds:
        assert (
            issubclass(cls, errors.UserError) and cls.__mro__[2].__module__ == "builtins" and str(cls("what happened")) == "what happened"
        )


def test_the_exit_code_of_main_and_of_an_interrupt():
    assert ends("return 3").returncode == 3 and ends("return {1: 2}").returncode == 0 and ends("raise KeyboardInterrupt").returncode == 130


# Flags ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    steps: int = 1
    n_layer: int = 2


@dataclass(frozen=True)
class Settings:
    train: Inner = field(default_factory=Inner)
    run: PathName = ""
    files: tuple[PathName, ...] = ()
    prompt: str = ""
    slide: bool = True


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--train.steps", "--steps"),
        ("--train.steps=3", "--steps"),
        ("-steps", "--steps"),
        ("--Steps", "--steps"),
        ("--model.n_layer", "--n-layer"),
    ],
)
def test_a_flag_in_another_form_gets_a_hint(capsys, given, meant):
    with pytest.raises(SystemExit) as end:
        parse_args(Settings(), None, [given, "3"])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: {given.partition('=')[0]}: no such flag, expected one that --help lists; did you mean {meant}?\n"
    )


def test_an_unknown_flag_gets_the_nearest_one(capsys):
    with pytest.raises(SystemExit):
        parse_args(Settings(), None, ["--stepz", "3"])
    assert "--stepz" in (err := capsys.readouterr().err) and "--steps" in err


def test_legal_forms_pass():
    assert parse_args(Settings(), None, ["--steps=3", "--n_layer", "4", "--no-slide"]) == Settings(Inner(3, 4), slide=False)


def test_the_home_directory_is_expanded_in_paths_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    config = parse_args(Settings(), None, ["--run=~/x", "--prompt=~/x", "--files", "~", "b/~", "~/c"])
    home = str(Path("/home/me"))
    assert config == Settings(run=str(Path("/home/me/x")), prompt="~/x", files=(home, "b/~", str(Path("/home/me/c"))))
    assert expand_home("~no-such-user/x") == "~no-such-user/x"


def test_the_home_directory_is_expanded_in_the_run_to_resume(tmp_path):
    done = python(ROOT / "examples/pretrain.py", "--resume=~/nowhere", HOME=str(tmp_path), USERPROFILE=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'nowhere'}: ") and done.stderr.count("\n") == 1


def test_every_path_flag_of_the_scripts_is_marked():
    """A flag that holds a path says so, or `~` would make a folder of that name."""
    names = {"run", "resume", "corpus", "data", "base", "out", "output", "ask", "scores", "runs"}
    found = 0
    for path in [*SCRIPTS, ROOT / "tinygpt/config.py", ROOT / "tinygpt/finetuning/common.py", ROOT / "tinygpt/inspect/explore.py"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, rest = line.strip().partition(": ")
            if (
                line.startswith("    ")
                and not line.startswith("     ")
                and name in names
                and rest.startswith(("str =", "str | None =", "PathName"))
            ):
                found += 1
                assert rest.startswith("PathName"), f"{path}: {line}"
    assert found > 10


@pytest.mark.parametrize("path", SCRIPTS, ids=[str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_every_script_answers_help(path):
    done = python(path, "--help")
    doc = path.read_text(encoding="utf-8").split('"""')[1].strip().splitlines()[0]
    assert done.returncode == 0 and done.stderr == "" and doc[:50] in done.stdout, done.stderr


def test_the_torch_side_of_the_benchmarks_answers_help_without_torch():
    code = f"import sys, runpy; sys.modules['torch'] = None; runpy.run_path({str(ROOT / 'benchmarks/peers.py')!r}, run_name='__main__')"
    assert "A plain GPT in PyTorch" in python("-c", code, check=True).stdout


# Commands -------------------------------------------------------------------------------------------------------------------


def test_the_commands_are_listed_one_line_each():
    for arguments in ([], ["--help"]):
        out = python("-m", "tinygpt", *arguments, check=True).stdout
        assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_an_unknown_command_gets_the_nearest_one():
    done = python("-m", "tinygpt", "verfy")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: command 'verfy', expected one of {', '.join(COMMANDS)}; did you mean 'verify'?\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help(command):
    assert f"usage: python -m tinygpt {command}" in python("-m", "tinygpt", command, "--help", check=True).stdout


def test_the_doctor_and_the_list_need_no_backend(tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('not here')", encoding="utf-8")
    variables = {"AUTOGRAD_BACKEND": "cupy", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    assert python("-c", "import tinygpt; print(tinygpt.__all__)", check=True, **variables).stdout.startswith("['GPT'")
    assert "doctor" in python("-m", "tinygpt", check=True, **variables).stdout
    done = python("-m", "tinygpt", "doctor", **variables)
    assert done.returncode == 1 and done.stderr == "" and "cupy   does not run: AUTOGRAD_BACKEND=cupy: step 1" in done.stdout
    done = python("-m", "tinygpt", "explore", **variables)
    assert done.returncode == 1 and done.stderr.startswith("error: AUTOGRAD_BACKEND=cupy: step 1") and done.stderr.count("\n") == 1


# Output that goes away --------------------------------------------------------------------------------------------------------

_LONG = "for i in range(20000): print(i)\n    open('done', 'w', encoding='utf-8').close()"


@pytest.mark.skipif(os.name == "nt", reason="needs a shell with pipes")
@pytest.mark.parametrize(("options", "code", "ended"), [("", 0, True), (", needs_reader=True", 141, False)])
def test_a_reader_that_leaves(tmp_path, options, code, ended):
    """A script that makes files makes them all; one that only prints ends."""
    script = f"from tinygpt import cli\ndef main():\n    {_LONG}\ncli.run(main{options})"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == code and (tmp_path / "done").exists() is ended
    assert err == ("warning: <stdout> is gone (Broken pipe): continuing without it\n" if ended else "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_under_the_output_does_not_end_a_script(tmp_path):
    script = f"from tinygpt import cli\ndef main():\n    {_LONG}\ncli.run(main)"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
    assert done.returncode == 0 and (tmp_path / "done").exists()
    assert done.stderr == b"warning: <stdout> is gone (No space left on device): continuing without it\n"
