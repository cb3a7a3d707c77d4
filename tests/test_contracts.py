"""What the repository promises about itself: layers, sizes, documents that match the code, no machine's paths."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from cldm.controlled import load_model_config
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.training.config import ExperimentConfig
from settings.reading import parse_command_line

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("settings", "ldm", "cldm", "muti_control", "data")
# What no package may import.
ABOVE = {"train", "sample", "evaluate", "tool_add_control", "benchmarks", "tests"}
FOLDERS = (*PACKAGES, "benchmarks", "tests", "configs", "models", "docs", ".ci")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".txt", ".cfg", ".sh", ""}


def sources() -> list[Path]:
    """Every Python file of ours."""
    return sorted(
        [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    )


def text_files() -> list[Path]:
    """Every text file of ours."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(
        path
        for path in [*ROOT.glob("*"), *ROOT.glob(".*"), *inside]
        if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts
        and "results" not in path.relative_to(ROOT).parts and path.name != ".git"
    )  # fmt: skip


def imported(path: Path, types_apart: bool = False) -> Iterator[tuple[str, int]]:
    """Yield every module that a file imports, as ``a.b.c``, with the line; ours without the imported name.

    types_apart: leave out what stands under ``if TYPE_CHECKING:``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (types_apart and is_for_types(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module), node.lineno


def imports_of(folder: Path, forbidden: Callable[[str], bool]) -> list[str]:
    """Return the forbidden imports in a folder, with their places."""
    paths = list(folder.rglob("*.py"))
    assert paths
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for name, line in imported(path)
        if forbidden(name)
    ]


def lines_with(paths: Iterable[Path], pattern: str) -> list[str]:
    """Return the lines that match a regular expression, with their places."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def module_name(path: Path) -> str:
    """Return ``a.b`` of a/b.py and of a/b/__init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sources() if "tests" not in path.parts}


FORBIDDEN = {  # folder -> what it must not import, beside what stands above all packages
    "settings": "ldm cldm muti_control data",
    "ldm": "cldm muti_control data",
    "cldm": "muti_control data",
    "muti_control": "",
    "data": "ldm cldm muti_control",
    **dict.fromkeys(
        ("muti_control/networks", "muti_control/conditions", "muti_control/losses"),
        "muti_control.training muti_control.sampling muti_control.evaluation",
    ),
    **dict.fromkeys(("muti_control/training", "muti_control/sampling"), "muti_control.evaluation"),
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers_point_one_way(folder):
    names = ABOVE | set(FORBIDDEN[folder].split())
    assert not imports_of(ROOT / folder, lambda name: any(f"{name}.".startswith(f"{n}.") for n in names))


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        name: {other for other, _ in imported(path, types_apart=True)} & MODULES.keys()
        for name, path in MODULES.items()
    }
    graph = {name: others - {name} for name, others in graph.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_folders_and_files_are_small_and_none_is_a_drawer():
    paths = sources()
    assert len(paths) > 100
    assert not [path for path in paths if path.stem in ("util", "utils", "helpers", "misc", "common")]
    long = {
        path: lines for path in paths if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 700
    }
    assert not long, f"more than 700 lines: {long}"
    counts = Counter(
        str(path.parent.relative_to(ROOT)) for path in MODULES.values() if path.stem != "__init__"
    )
    full = {folder: count for folder, count in counts.items() if count > 15}
    assert not full, f"more than 15 modules in a folder: {full}"


def test_no_paths_of_a_machine_and_nothing_outside_the_repository():
    roots = "|".join(("work", "root", "home", "Users", "tmp", "mnt", "var/tmp"))
    assert not lines_with(text_files(), rf"(?<![\w./~$}}-])/(?:{roots})/|\.\./" + "shared")


def test_no_unsafe_loading():
    calls = r"strict\s*=\s*False|weights_only\s*=\s*False|pickle\.load|yaml\.load\("
    lines = lines_with([path for path in sources() if path.parent.name != "tests"], calls)
    assert not [line for line in lines if "zip(" not in line and "save_checkpoint(" not in line]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_and_protocol_parses(path):
    if path.parent.name == "evaluate":
        parse_command_line(EvaluateConfig, [str(path)])
        return
    config = parse_command_line(ExperimentConfig, [str(path)])
    assert config.stage and config.name
    if config.init is not None:
        assert config.how_to_get_init, "says nothing to a user who lacks its init"


def test_every_model_parses():
    for path in [ROOT / "models" / "cldm_v15.yaml", *(ROOT / "models").rglob("*.yaml")]:
        load_model_config(path)


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_conda_environment_has_the_ranges_of_pyproject():
    project = _project()
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    of_extras = [
        line
        for extra in ("cohort", "ct", "eval", "report", "diffusers")
        for line in project["optional-dependencies"][extra]
    ]
    assert sorted(pip) == sorted({*project["dependencies"], *of_extras})
    assert f"python{project['requires-python']}" in conda


def test_every_dependency_is_imported_somewhere_and_none_is_forgotten():
    owners = metadata.packages_distributions() | {"dlib": ["dlib-bin"]}  # whose wheel does not say so
    project = _project()

    def distributions(requirements: list[str]) -> set[str]:
        return {canonicalize_name(re.split(r"[<>=!~ ]", requirement)[0]) for requirement in requirements}

    runtime = distributions(project["dependencies"])
    extras = distributions([line for extra in project["optional-dependencies"].values() for line in extra])
    product = [path for path in sources() if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks")]
    modules = {name.split(".")[0] for path in product for name, _ in imported(path)}
    used = {canonicalize_name(owner) for name in modules for owner in owners.get(name, ())}
    by_name_only = {"tensorboard", "open-clip-torch"}  # found by Lightning's logger, and by ldm.text
    assert runtime - by_name_only <= used, "listed but never imported"
    ours = {"iccr-diff", "pydantic-core"}  # the latter is a part of pydantic
    assert used <= runtime | extras | ours, "imported but not listed in pyproject.toml"


# ---------------------------------------------------------------- starting
def makefiles() -> str:
    """Return the Makefile and what it includes."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    included = re.findall(r"^include (.*)$", text, flags=re.M)
    return "\n".join([text, *((ROOT / name).read_text(encoding="utf-8") for name in included)])


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", makefiles(), flags=re.M))


ABSENT = """
import importlib.metadata, sys

extras, distribution = %r, importlib.metadata.distribution
sys.modules.update(dict.fromkeys(extras))  # None: cannot be imported
importlib.metadata.distribution = lambda name: distribution("absent" if name in extras else name)
"""


def test_the_programs_start_without_any_extra():
    """`make demo` installs the runtime dependencies alone."""
    extras = "scipy embreex pydicom SimpleITK vtk vtkmodules dlib onnxruntime skimage diffusers matplotlib onnx fpdf "
    extras += "pytest hypothesis face_recognition_models torchvision nicegui fastapi starlette"
    programs = "train sample tool_add_control evaluate data.partial data.split data.check "
    programs += (
        "muti_control.training.predict_landmarks muti_control.case.verify cldm.diffusers_folder.__main__"
        " muti_control.studio.__main__"
    )
    imports = "\n".join(f"import {name}" for name in programs.split())
    command = [sys.executable, "-c", ABSENT % extras.split() + imports]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_make_help_lists_every_target():
    described = set(re.findall(r"^([a-z-]+):.*## ", makefiles(), flags=re.M))
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefiles(), flags=re.M)).split())
    assert described == phony == make_targets()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_cleans_only_what_it_made_and_asks_no_environment():
    def make(*arguments: str) -> str:
        environment = {key: os.environ[key] for key in os.environ if not key.startswith(("MAKE", "MFLAGS"))}
        environment |= {"OUT": "elsewhere", "COHORT": "elsewhere", "WEIGHTS": "elsewhere"}
        command = ["make", "--no-print-directory", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    removed = make("-n", "clean").splitlines()[0].split()
    assert "results/demo" in removed and not {"results", "results/", "runs", "models"} & set(removed)
    database = make("-pn", "help")
    assert "\nOUT = results/demo\n" in database and "\nCOHORT = cohort\n" in database
    assert "\nOUT = here\n" in make("-pn", "help", "OUT=here")
