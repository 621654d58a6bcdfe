"""Prints the lowest versions that pyproject.toml allows, read from it, as constraints for pip."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in sorted({each for group in groups for each in group}):
        print(lowest(requirement))


def lowest(requirement: str) -> str:
    """`httpx>=0.26,<0.29` becomes `httpx==0.26`; whatever names no lowest version is a mistake."""
    found = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", requirement)
    if found is None:
        raise SystemExit(f"{requirement!r} in pyproject.toml names no lowest version")
    return f"{found[1]}=={found[2]}"


main()
