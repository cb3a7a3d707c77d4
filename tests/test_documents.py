"""The documents: their commands and links exist and run, their sentences are short, what is generated is fresh."""

from __future__ import annotations

import contextlib
import io
import json
import pydoc
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import readability
from test_contracts import ROOT, make_targets, text_files

import sample
import tool_add_control
import train
from docs import settings_page
from settings.messages import known_keys

KEYS_OF = {  # program -> its settings class
    "train.py": "muti_control.training.config.ExperimentConfig",
    "sample.py": "muti_control.sampling.config.SampleConfig",
    "evaluate.py": "muti_control.evaluation.protocol.config.EvaluateConfig",
    "muti_control.training.crossfit": "muti_control.training.config.ExperimentConfig",
    "muti_control.networks.pipnet.export": "muti_control.networks.pipnet.export.ExportConfig",
    "muti_control.training.predict_landmarks": "muti_control.training.predict_landmarks.PredictConfig",
    "muti_control.case.report": "muti_control.case.report.ReportConfig",
    "muti_control.search": "muti_control.search.__main__.SearchConfig",
    "muti_control.search.calibrate": "muti_control.search.calibrate.CalibrateConfig",
    "muti_control.studio": "muti_control.studio.__main__.StudioConfig",
    "muti_control.case.verify": "muti_control.case.verify.VerifyConfig",
    "data.cohort": "data.cohort.config.CohortConfig",
    "data.ct": "data.ct.config.CtConfig",
    "data.cohort.sheet": "data.cohort.sheet.SheetConfig",
    "data.pack": "data.pack.PackConfig",
    "data.check": "data.check.config.CheckConfig",
    "data.split": "data.split.SplitConfig",
}
for path in (ROOT / "benchmarks").rglob("*.py"):
    for module, schema in re.findall(r'return run\("([\w.]+)", (\w+)', path.read_text(encoding="utf-8")):
        KEYS_OF[f"benchmarks.{module}"] = f"benchmarks.{module}.{schema}"


def documents() -> list[Path]:
    """What a user reads; the changelog tells of commands that are gone."""
    return [path for path in text_files() if path.suffix == ".md" and path.name != "CHANGELOG.md"]


def commands(path: Path) -> Iterator[str]:
    """Command lines in a document: lines of fenced blocks and `code spans` that start like one."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, flags=re.S | re.M)
    lines = [line for block in fenced for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M))
    for line in [*lines, *spans]:
        line = line.strip().removeprefix("$ ").split("  #")[0].strip()
        line = line.removeprefix(".venv/bin/")
        if re.match(r"(make|python)( |$)", line):
            yield line


def test_modules_that_the_architecture_names_exist():
    for name in ("docs/architecture.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        paths = {path for path in re.findall(r"`([\w/]+/[\w/]*(?:\.py)?)`", text)}
        assert len(paths) > 1 or name == "CONTRIBUTING.md"
        within = ROOT / "muti_control/evaluation"
        assert not [path for path in paths if not (ROOT / path).exists() and not (within / path).exists()]


def test_wrong_commands_are_noticed():
    assert problem("make nothing")
    assert problem("python train.py configs/nowhere.yaml")
    assert problem("python sample.py skul=x.png") == "no setting ['skul']"
    assert problem("python -m data.nothing")
    assert problem("python nothing.py")
    assert not problem("python evaluate.py sampling.steps=5 data.root=cohort")


def modules_of_the_past() -> set[str]:
    """Return the modules that docs/history.md lists as gone; RESULTS.md still names their commands."""
    text = (ROOT / "docs/history.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (`.*?) \|", text, flags=re.M)
    return set(re.findall(r"`([\w.]+)`", " ".join(first_cells)))


def test_every_command_in_the_documents_exists():
    documented = [(path, line) for path in documents() for line in commands(path)]
    assert {"make demo", "make test"} <= {line for path, line in documented if path.name == "README.md"}
    past = modules_of_the_past()
    current = [
        (path.name, line)
        for path, line in documented
        if not (path.name == "RESULTS.md" and line.startswith("python -m ") and line.split()[2] in past)
    ]
    wrong = [f"{name}: `{line}`: {why}" for name, line in current if (why := problem(line))]
    assert not wrong, "\n".join(wrong)
    results = [line for name, line in current if name == "RESULTS.md"]
    assert len(results) > 15, "most commands of RESULTS.md must be of programs that still exist"
    assert {"benchmarks.conditions", "benchmarks.cost_model"} <= past
    assert not [name for name in past if (ROOT / Path(*name.split("."))).with_suffix(".py").is_file()]


def problem(line: str) -> str | None:
    """What is wrong with a documented command, if anything."""
    words = shlex.split(line.split(" && ")[0].split(" | ")[0])
    if words[0] == "make":
        unknown = [word for word in words[1:] if "=" not in word and word not in make_targets()]
        return f"no target {unknown}" if unknown else None
    rest = words[1:]
    if rest and rest[0] == "-m":
        module = rest[1].split(".")[0]
        if not (ROOT / module).is_dir():  # pip, venv and the like
            return None
        target = ROOT / Path(*rest[1].split("."))
        if not target.with_suffix(".py").is_file() and not (target / "__main__.py").is_file():
            return f"no module {rest[1]}"
        rest = rest[2:]
    elif rest and rest[0].endswith(".py"):
        if not (ROOT / rest[0]).is_file():
            return f"no script {rest[0]}"
        rest = rest[1:]
    program = words[2] if words[1:2] == ["-m"] else (words[1:] or [""])[0]
    if program in KEYS_OF:
        keys = known_keys(pydoc.locate(KEYS_OF[program]))
        unknown = [key for key in (word.split("=")[0] for word in rest if "=" in word) if key not in keys]
        if unknown:
            return f"no setting {unknown}"
    missing = [
        word for word in rest if word.endswith(".yaml") and "=" not in word and not (ROOT / word).is_file()
    ]
    return f"no file {missing}" if missing else None


def test_links_in_the_documents_lead_somewhere():
    wrong = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in documents()
        for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
        if "://" not in link and not (path.parent / link).exists()
    ]
    assert not wrong, wrong


# ---------------------------------------------------------------- sentences
PLAIN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_sentences_are_short(path: Path) -> None:
    text = readability.read(path.read_text(encoding="utf-8"))
    assert not text.longer_than(25)
    assert text.median <= 14


def test_the_readme_can_be_read_in_ten_minutes() -> None:
    text = readability.read((ROOT / "README.md").read_text(encoding="utf-8"))
    assert 1000 < text.words <= 1700
    assert not text.with_numbers(1), "one number a sentence"


def test_sentences_are_counted_as_people_do() -> None:
    text = readability.read(
        "# A title that does not count\n\nOne two `a b c` [four](x.md). Five, six!\n\n- seven eight\n  nine\n\n"
        "| ten | 11. 12 13 |\n|---|---|\n\n```\nnot this\n```\n"
    )
    assert text.lengths == [4, 2, 3] and text.median == 3
    assert text.longer_than(3) == ["One two code four."] and text.cells == ["ten", "11.", "12 13"]
    assert text.with_numbers(0) == [] and readability.read("From 1 to 2.5 px, SD1.5.").with_numbers(1)


# ---------------------------------------------------------------- the site
def test_the_settings_page_is_fresh() -> None:
    """``python -m docs.settings_page`` writes it."""
    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.page()


def test_the_site_is_built_without_a_warning_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    """A link or an anchor that leads nowhere is a warning."""
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    build(config.load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    page = (tmp_path / "docs/architecture.html").read_text(encoding="utf-8")
    assert "house.svg" in page and (tmp_path / "docs/house.svg").is_file()
    for path in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:link|script|img)[^>]*(?:href|src)="?(https?:[^" >]+)', path.read_text("utf-8")
        )
        assert not loaded, path


# ---------------------------------------------------------------- running
NOT_RUN = {  # pattern of commands -> why this test does not run them
    r"make( |$)|(python3? -m )?pip |conda |python3 -m venv|source ": "they install; CI runs make test",
    r"git ": "of history",
    r".*(torchrun|sbatch|device=cuda|devices=|precision=fp16)": "a GPU",
    r".*(sd15|canny|v1-5)": "the weights of Stable Diffusion 1.5",
    r"tensorboard|python -m (muti_control|benchmarks).studio": "they serve pages; tests/test_studio.py",
    r"python train.py configs/demo/(?!control)": "hours; trained() has the same stages on tiny networks",
    r"python evaluate.py": "seconds each; tests/test_evaluate.py, test_evaluate_guidance.py, test_compare.py",
    r".*cldm.diffusers_folder": "seconds each; tests/test_diffusers_folder.py",
    r".*(crossfit|predict_landmarks)": "minutes; tests/test_pipnet_predict.py",
    r".*pipnet.export": "tests/test_pipnet.py",
    r"python -m muti_control.search|.*spgd.match": "tests/test_match.py",
    r".*calibrate|python -m benchmarks": "minutes; tests/test_calibration.py and the benchmarks' own",
    r"python -m data.(ct|cohort)\b|.*scan.nii.gz": "a head CT, or minutes; tests/test_ct.py, tests/test_cohort.py",
    r"python -m docs.settings_page": "test_the_settings_page_is_fresh",
    r"python sample.py .*(examiner|force|prepare|eta|batch_size)": "one more setting; tests/test_sample.py",
    r"python sample.py .*(grid=|somebody|spgd.)": "tests/test_case_io.py, test_grain.py, test_spgd_runs.py",
    r".*\b(FILE|FOLDER|NAME|PASTE_THE_HASH_HERE|with_landmarks)\b": "needs a file of the user, or of one of these",
}
TINY = {  # program -> settings that make it small
    "sample.py": {"sampling.steps": "2", "num_samples": "1", "precision": "fp32"},
    "train.py": {
        "train.max_steps": "1", "train.batch_size": "1", "train.num_valid": "2", "train.export_dtype": "float32",
        "train.precision": "fp32", "train.logger": "csv", "sampling.steps": "1", "losses.sub_batch": "1",
    },
}  # fmt: skip
FILES = ("skull=", "weights=", "init=", "name=mine")  # settings whose value makes a command another one
PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "sample.py": sample.main,
    "train.py": train.main,
    "tool_add_control.py": tool_add_control.main,
}


@pytest.fixture(scope="module")
def tried() -> set[str]:
    """Return the settings and files that commands have had."""
    return set()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[str], Path]) -> Path:
    """Return a folder that has what the documents' commands name; the model in it is tiny."""
    tmp_path = tmp_path_factory.mktemp("workspace")
    demo, model = tmp_path / "models/demo", trained("control") / "model.safetensors"
    demo.mkdir(parents=True)
    shutil.copy(model, demo / "iccr_demo.safetensors")
    networks = {name: ROOT / f"models/demo/{name}.safetensors" for name in ("pipnet_face", "pipnet_skull")}
    for run, path in (
        ("runs/demo_base", trained("base") / "model.safetensors"),
        ("runs/demo_pipnet_skull", networks["pipnet_skull"]),
    ):
        (tmp_path / run).mkdir(parents=True)
        shutil.copy(path, tmp_path / run / "model.safetensors")
    shutil.copy(model, tmp_path / "models/control_demo_ini.safetensors")
    for name, path in networks.items():
        (demo / f"{name}.safetensors").symlink_to(path)
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = (ROOT / "data/split_data/train.json").read_text(encoding="utf-8").splitlines()[:10]
    lines = [
        re.sub(r', "texture": "[^"]*"', "", line) for line in lines
    ]  # whose exemplars are not among the ten
    lists = tmp_path / "my_data/split_data"
    lists.mkdir(parents=True)
    (lists / "all.json").write_text("\n".join(lines), encoding="utf-8")
    for line in map(json.loads, lines):
        for name in (f"skull/{line['source']}", f"craniofacial/{line['target']}", line["landmarks"]):
            (tmp_path / "my_data/pairedCS" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "data/pairedCS" / name, tmp_path / "my_data/pairedCS" / name)
    (tmp_path / "cohort").symlink_to(tmp_path / "my_data")
    names = [json.loads(line)["source"] for line in lines[:2]]
    (tmp_path / "my_skulls").mkdir()
    for name in names:
        shutil.copy(ROOT / "data/pairedCS/skull" / name, tmp_path / "my_skulls")
    shutil.copy(ROOT / "data/pairedCS/skull" / names[0], tmp_path / "my_skull.png")
    shutil.copy(ROOT / "data/pairedCS/craniofacial" / names[1], tmp_path / "somebody.png")
    return tmp_path


def made_small(program: str, words: Sequence[str]) -> list[str]:
    """Return the arguments of a command with the settings of ``TINY``, and a new name for a run that is there."""
    if any(word.startswith("repeat=") for word in words):
        return list(words)
    settings = dict(TINY.get(program, {}))
    if program == "train.py" and "name=mine" in words and Path("runs/mine").exists():
        settings["name"] = "mine_again"
    given = [word for word in words if word.split("=")[0] not in settings]
    return [*given, *(f"{key}={value}" for key, value in settings.items())]


def run_as_written(line: str) -> None:
    """Run a documented command in this process. Raises: AssertionError: its exit code is not 0."""
    line, _, target = line.partition(" > ")
    program, *words = shlex.split(line)[1:]
    if program == "-m":
        program, *words = words
    if program == "tool_add_control.py":
        Path(words[1]).unlink(missing_ok=True)
    arguments = made_small(program, words)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if program in PROGRAMS:
            code = PROGRAMS[program](arguments)
        else:
            code = exit_code_of(program, arguments)
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    assert code == 0, f"{line}: exit code {code}\n{''.join(texts)}"
    if target:
        Path(target).write_text(texts[0], encoding="utf-8")


def exit_code_of(module: str, arguments: Sequence[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.mark.parametrize("pages", [PLAIN[:1], PLAIN[1:]], ids=["README", "docs"])
def test_the_commands_run(
    pages: Sequence[Path], workspace: Path, tried: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command runs as it is written, in the order of the pages, but for what TINY makes small.

    NOT_RUN says which do not run. A command without a setting or file that is new is not run again.
    """
    monkeypatch.chdir(workspace)
    before = len(tried)
    for line in dict.fromkeys(line for path in pages for line in commands(path)):
        if any(re.match(pattern, line) for pattern in NOT_RUN):
            continue
        program, *words = shlex.split(line)[1:]
        keys = [word if word.startswith(FILES) else word.split("=")[0] for word in words]
        new = {f"{program} {key}" for key in keys} - tried
        if new:
            run_as_written(line)
            tried |= new
    assert len(tried) > before + 20


# ---------------------------------------------------------------- examples
EXAMPLES = {  # file -> what makes it small
    "edit_and_report": {
        'STEPS, FACES, FORMAT = 6, 4, "pdf"': 'STEPS, FACES, FORMAT = 2, 1, "html"',
    },
    "ten_pairs": {
        'STEPS, MORE = 20, ["train.batch_size=4", "train.num_valid=2"]': 'STEPS, MORE = 1, ["train.batch_size=1", '
        '"train.num_valid=2", "sampling.steps=1", "train.logger=csv"]',
        '{"steps": 6}': '{"steps": 1}',
    },
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(
    name: str, trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / f"docs/examples/{name}.py"
    text = path.read_text(encoding="utf-8")
    weights = {
        'ROOT / "models/demo/iccr_demo.safetensors"': f"Path({str(trained('control'))!r}) / 'model.safetensors'"
    }
    for line, other in {**EXAMPLES[name], **weights}.items():
        assert line in text
        text = text.replace(line, other)
    monkeypatch.setattr(sys, "argv", [path.name, str(tmp_path / "out")])
    monkeypatch.setattr(sys, "path", sys.path)
    exec(compile(text, path, "exec"), {"__file__": str(path), "__name__": "__main__"})
    expected = {"edit_and_report": "after/report.html", "ten_pairs": "run/model.safetensors"}
    assert (tmp_path / "out" / expected[name]).is_file()
