"""Print the oldest releases that pyproject.toml admits, as requirements: `make oldest` tests with them.

`torch>=2.11,<3` becomes `torch~=2.11.0`: the first minor release with its fixes. Checkers are left out.
"""

import re
import tomllib

CHECKERS = ("ruff", "mypy", "types-", "pre-commit")

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
requirements = [line for extra in project["optional-dependencies"].values() for line in extra]
for line in project["dependencies"] + requirements:
    if line.startswith(CHECKERS):
        continue
    match = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<[\d.]+)?", line)
    if match is None:
        raise SystemExit(f"pyproject.toml: {line!r}: expected NAME>=VERSION or NAME>=VERSION,<VERSION")
    name, version = match[1], match[2]
    print(f"{name}~={version}.0" if "." in version else f"{name}>={version}")
