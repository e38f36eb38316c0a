"""The documents against the code: every command, option, path, setting, status and view exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import yaml
from typer.main import get_command

from tests.support.world import World, vidgen
from vidgen_worker.cli import app
from vidgen_worker.cli.verbs import Later
from vidgen_worker.config import Settings
from vidgen_worker.domain.faults import FAULTS, PROVIDER_STORM
from vidgen_worker.films import cut as cuts
from vidgen_worker.films import reading
from vidgen_worker.films.presets import LARGEST_SIDE

DOCS = Path(__file__).parents[2] / "docs"
TEXTS = {path.name: path.read_text() for path in sorted(DOCS.glob("*.md"))}
EVERYTHING = "\n".join(TEXTS.values())


def commands() -> list[str]:
    return sorted(set(re.findall(r"`vidgen-worker ([^`]+)`", EVERYTHING)))


@pytest.mark.parametrize("line", commands())
def test_a_command_is_understood(line: str) -> None:
    """Its verb and options are parsed as they would be; capitals stand for a value."""
    command = get_command(app)
    words = line.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    command = command.load() if isinstance(command, Later) else command
    options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word in options, line
    assert not hasattr(command, "commands") or words[0].startswith("--"), line


def test_sql_runs(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        for block in re.findall(r"```sql\n(.*?)```", EVERYTHING, re.DOTALL):
            conn.execute(block.encode())


def test_every_cut_is_one_that_a_worker_reads() -> None:
    """What is written with all its members is read back from what it was read as."""
    blocks = re.findall(r"```json\n(.*?)```", README + TEXTS["films.md"], re.DOTALL)
    found = [json.loads(block) for block in blocks]
    for cut in found:
        assert reading.read(cut).outputs, "both are about films with outputs"
        assert reading.read(reading.written(reading.read(cut))) == reading.read(cut)
    named = {member for cut in found for member in cut}
    assert named == {
        "parts", "scenario", "captions", "caption_style", "sound", "logo", "end", "outputs",
        "on_failure",
    }  # fmt: skip


def test_the_limits_of_a_film_are_the_codes() -> None:
    limits = {
        "the cut, as text": f"{cuts.MOST_BYTES // 1024} KiB",
        "parts": f"{cuts.MOST_PARTS} ({cuts.MOST_PARTS_OF_A_BATCH} without outputs)",
        "outputs": str(cuts.MOST_OUTPUTS),
        "length": f"{cuts.LONGEST_FILM} s",
        "captions, those of parts counted":
            f"{cuts.MOST_CAPTIONS}, each of {cuts.LONGEST_TEXT} characters",
        "voices": str(cuts.MOST_VOICES),
        "an asset": f"{cuts.LARGEST_ASSET // 2**20} MiB",
        "clips and assets together": f"{cuts.LARGEST_SUM // 2**30} GiB",
        "a side of the picture": f"{LARGEST_SIDE:,} pixels",
    }  # fmt: skip
    written_down = re.findall(r"^\| (.+?) \| (.+) \|$", limits_of_films(), re.MULTILINE)
    assert dict(written_down[1:]) == limits


def limits_of_films() -> str:
    return TEXTS["films.md"].partition("\n## Limits\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_settings_exist(name: str) -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", TEXTS[name]):
        assert (DOCS / target).exists(), target
    for setting in re.findall(r"\bVIDGEN_[A-Z_]+|\bRUNWAYML_[A-Z_]+", TEXTS[name]):
        assert setting.lower() in Settings.model_fields, setting


def test_every_fault_that_is_named_exists() -> None:
    codes = {rule.code for rule in FAULTS.values()} | {PROVIDER_STORM}
    for code in re.findall(r"`((?:PROVIDER|STORAGE|RESOLUTION|CONTENT)_\w+)`", EVERYTHING):
        assert code in codes or code.lower() in Settings.model_fields, code


def test_the_alert_rules_are_yaml_of_the_known_shape() -> None:
    (group,) = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert rule["expr"]
        # A comma in an unquoted summary would make two annotations of it.
        assert list(rule["annotations"]) == ["summary"], rule
        assert rule["annotations"]["summary"]
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="needs Debian's package prometheus")
def test_prometheus_takes_the_alert_rules() -> None:
    done = subprocess.run(
        [PROMTOOL or "", "check", "rules", str(DOCS / "alerts.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sizing_table_follows_from_its_formulas() -> None:
    """40 ms, 2.8 ms, 94 MB, 39 KB; 90 s a task, polled every 7 s; nine connections a worker."""
    rows = re.findall(
        r"^\| ([\d,]+) \| (\d+) \| (\d) × (\d+) \| (\d+) \| ([\d.]+) \| (\d+) MB \|$",  # noqa: RUF001
        TEXTS["operations.md"],
        re.MULTILINE,
    )
    assert len(rows) == 4
    pool = Settings.model_fields["vidgen_database_pool"].default
    for row in rows:
        videos, slots, workers, each, connections = (int(n.replace(",", "")) for n in row[:5])
        assert slots == videos * 90 / 3600
        assert workers * each >= slots
        assert connections == workers * (pool + 3)
        assert float(row[5]) == pytest.approx(videos * (0.040 + 90 / 7 * 0.0028) / 3600, rel=0.2)
        assert int(row[6]) == round(workers * 94 + slots * 0.039)


README = (DOCS.parent / "README.md").read_text()
ELSEWHERE = {
    "run": "every test of a worker",
    "stats --watch": "test_operations.py",
    "enqueue --scene ID --user ID --watch": "test_cli.py",
    "enqueue --user ID --cut FILE --watch": "cli/test_films.py",
    "tasks watch ID": "test_living_with_it.py",
    "init": "test_living_with_it.py",
    "dashboard": "test_dashboard.py",
    "sandbox --data DIR": "test_sandbox.py; it runs until Ctrl-C",
    "sandbox token USER": "test_sandbox.py; it asks a running sandbox",
    "tasks": "a group of verbs; its --help is tried",
    "credits": "a group of verbs; its --help is tried",
}
ASKS_FOR_YES = {
    "prune", "prune --older-than 90d", "tasks retry --code CODE --since 1d",
    "gate close gen4_turbo --message TEXT --until 2h", "gate open gen4_turbo",
}  # fmt: skip


def written() -> list[str]:
    """Every command of README and docs, in sentences and in blocks."""
    text = README + EVERYTHING
    inline = re.findall(r"`vidgen-worker ([^`]+)`", text)
    return sorted({" ".join(line.split()) for line in [*inline, *in_blocks(text)]})


def in_blocks(text: str) -> list[str]:
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    return re.findall(r"^vidgen-worker ([^#\n]+)", blocks, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_every_command_that_is_written_down_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a database with a task that failed; capitals stand for what is there."""
    monkeypatch.chdir(tmp_path)  # what a command writes is not for the repository
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt="[[fail ASSET.INVALID]] A bottle"))
    async with world.worker():
        await world.until(task, "failed")
    commands = written()
    assert set(ELSEWHERE) <= set(commands), "what is excused here must be written there"
    wrong = []
    for command in commands:
        words = ["--help"] if command in ELSEWHERE else []
        line = command.split()[:1] if words else command.split()
        done = vidgen(world, *[filled(word, task, user) for word in line], *words)
        said = f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        if done.returncode != (2 if command in ASKS_FOR_YES else 0) or "Traceback" in said:
            wrong.append(said)
    assert not wrong, "\n".join(wrong)


ROOT = DOCS.parent
BY_TEST = {
    "make demo": "tests/cli/test_demo.py",
    "make sandbox": "tests/cli/test_sandbox.py",
    'make sandbox ARGS="--env-file .env.sandbox"': "tests/client/test_example_app.py",
    "set -a; . ./.env.sandbox; set +a; .venv/bin/vidgen-worker run": "tests/cli/test_sandbox.py",
    "cd examples/app && npm install && npm run sandbox": "tests/client/test_example_app.py",
    ".venv/bin/vidgen-worker credits grant USER_ID 100 --reference more --yes":
        "tests/cli/test_sandbox.py",
    "pip install vidgen_worker-*.whl": "tests/house/test_house.py",
    'supabase gen types --remote="$DATABASE_URL" --lang=typescript --schema public'
    " > database.types.ts": "tests/client/test_examples.py",
}  # fmt: skip
"""Lines of shell blocks that a test of its own runs: which file."""
BY_NOBODY = {
    "make test": "this is one of its tests",
    "make check": "CI runs it before the tests",
    "make format": "it rewrites the sources",
    "make pictures": "it takes two minutes and rewrites the pictures; mypy and ruff read it",
    ".ci/run": "CI is it",
    "docker build --tag vidgen-worker .": "needs Docker; test_container.py reads the recipe",
    "docker run --env-file worker.env vidgen-worker migrate": "needs Docker",
    "docker run --env-file worker.env --read-only --tmpfs /tmp --stop-timeout 110 vidgen-worker":
        "needs Docker",
    "docker compose run --rm --no-deps worker check":
        "needs Docker; test_container.py reads compose.yaml",
    "docker compose up --detach": "needs Docker",
    "docker compose down": "needs Docker",
}  # fmt: skip
"""Lines of shell blocks that no test runs, and why not."""


def shell_lines() -> set[str]:
    """Every line of a shell block, without its comment, of all documents but for our own verbs."""
    documents = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "examples" / "app" / "README.md"]
    text = "\n".join(document.read_text() for document in documents)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = (re.sub(r"\s+#\s.*", "", line) for block in blocks for line in block.splitlines())
    return {line for line in lines if line and not line.startswith("vidgen-worker ")}


def test_every_line_of_a_shell_block_is_run_by_a_test_or_says_why_not() -> None:
    """Lines that begin with our own verbs are run above."""
    assert shell_lines() == BY_TEST.keys() | BY_NOBODY.keys()
    for file in BY_TEST.values():
        assert (ROOT / file).exists(), file


def filled(word: str, task: UUID, user: UUID) -> str:
    values = {"ID": str(task), "USER": str(user), "AMOUNT": "100", "CODE": "ASSET_INVALID"}
    return values.get(word, word)
