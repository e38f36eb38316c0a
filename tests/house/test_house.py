"""The house: files that repeat what the code says, the layers, and what the wheel holds."""

import ast
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vidgen_worker import __version__
from vidgen_worker.config import Settings, meanings
from vidgen_worker.settings.looks import shown

ROOT = Path(__file__).parents[2]
MOST_LINES = 350
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_environment_holds_every_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    lines = dict(re.findall(r"^(#?[A-Z_]+)=(.*)$", text, re.MULTILINE))
    expected = {}
    said = meanings()
    for name, field in Settings.model_fields.items():
        assert f"# {said[name]}" in text, f"{name.upper()}: its meaning is not there"
        if field.is_required():
            expected[name.upper()] = lines.get(name.upper(), "")
        else:
            default = field.get_default()
            expected[f"#{name.upper()}"] = "" if default is None else shown(default)
    assert lines == expected


def test_each_layer_imports_only_downward() -> None:
    run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")


def test_the_lock_pins_every_dependency_and_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", text, re.MULTILINE))
    rest = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(rest) == len(pinned), "a line is no pin"
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned.items()}
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in extras.values() for line in extra)]:
        wanted = Requirement(line)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert name in normal, f"{name} is not in requirements.lock: make lock"
        assert wanted.specifier.contains(normal[name]), f"{line} does not admit {normal[name]}"


def test_every_module_says_what_it_is_for() -> None:
    for path in sorted((ROOT / "vidgen_worker").rglob("*.py")):
        docstring = path.read_text().partition('"""')[2].partition('"""')[0]
        assert docstring, f"{path} has no docstring"
        assert len(docstring.splitlines()) <= 10, f"{path}: its docstring is a chapter"


def test_no_module_is_longer_than_a_reader_holds() -> None:
    """A catalogue may be: its line "Up to N lines: why" says so."""
    for path in sorted((ROOT / "vidgen_worker").rglob("*")):
        if path.suffix in (".py", ".sql"):
            text = path.read_text()
            reason = re.search(r"^(?:#|--) Up to (\d+) lines: \S+", text, re.MULTILINE)
            most = int(reason[1]) if reason else MOST_LINES
            assert len(text.splitlines()) <= most, f"{path} has more than {most} lines"


def test_every_box_says_what_it_is_for_and_what_it_never_does() -> None:
    package = ROOT / "vidgen_worker"
    for folder in (path.parent for path in package.rglob("*.py") if path.parent != package):
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, f"{folder} has no docstring"
        assert len(docstring.splitlines()) >= 3, f"{folder}: what does it never do?"


def test_the_layout_is_the_layers_and_says_what_each_box_says() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one.get("containers") == ["vidgen_worker"]]
    rows = []
    for layer in reversed(layers):
        for name in re.findall(r"(?<!\()\b[a-z]+\b(?!\))", layer):
            folder = ROOT / "vidgen_worker" / name
            if folder.is_dir():
                docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
                rows.append(f"| `{name}/` | {str(docstring).splitlines()[0]} |")
    written = re.findall(r"^\| `\w+/` .*$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert written == rows, "the table in CONTRIBUTING.md is another one"


def test_every_box_has_its_tests() -> None:
    boxes = {path.parent.name for path in (ROOT / "vidgen_worker").glob("*/__init__.py")}
    tested = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert boxes <= tested, boxes - tested


def test_no_test_imports_another_test() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        }
        tests = {name for name in imported if name.rpartition(".")[2].startswith("test_")}
        assert not tests, f"{path} imports {tests}: a shared helper belongs into tests/support/"


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    said = run("make", "--no-print-directory", "help")
    for target in targets:
        assert re.search(rf"^  make {target} ", said, re.MULTILINE), target


def test_the_services_start_what_exists() -> None:
    unit = (ROOT / "systemd" / "vidgen-worker.service").read_text()
    assert "Type=notify" in unit
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert stop
    drain = Settings.model_fields["vidgen_drain_timeout"].default
    assert int(stop[1]) > drain.total_seconds()
    for name in re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE):
        assert name in Settings.model_fields
    assert (ROOT / "Procfile").read_text() == (
        "release: vidgen-worker migrate\nworker: vidgen-worker run\n"
    )


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"vidgen_worker-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"vidgen_worker-{__version__}.dist-info/METADATA").decode()
    for migration in (ROOT / "migrations").glob("*.sql"):
        assert f"vidgen_worker/migrations/{migration.name}" in names
    for path in (ROOT / "vidgen_worker").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert "vidgen_worker/env.example" in names
    assert not [name for name in names if name.startswith("tests/")]
    assert f"Version: {__version__}" in metadata

    # Its dependencies are borrowed from this environment: what is tried is the wheel.
    home = tmp_path / "home"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (borrowed,) = {path for path in sys.path if path.endswith("site-packages")}
    (site / "borrowed.py").write_text(f"import sys; sys.path.append({borrowed!r})")
    (site / "borrowed.pth").write_text("import borrowed\n")
    python = str(home / "bin" / "python")
    empty = tmp_path / "empty"
    empty.mkdir()
    # -E: a PYTHONPATH of the environment could lead to the checkout.
    said = run(python, "-E", "-m", "vidgen_worker", "--version", cwd=empty)
    assert said.strip() == f"vidgen-worker {__version__}"
    code = (
        "from vidgen_worker.database.migrate import migrations; import vidgen_worker;"
        " from vidgen_worker.worker.serve import assemble;"
        " print(vidgen_worker.__file__, len(migrations()))"
    )
    where, count = run(python, "-E", "-c", code, cwd=empty).split()
    assert where.startswith(str(site))
    assert int(count) == len(list((ROOT / "migrations").glob("*.sql")))
