"""Command lines and YAML merged into typed settings: what wins, what stays text, and which key an error names."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from cldm.config import SamplingConfig
from data.cohort.config import CohortConfig
from data.split import SplitConfig
from ldm.config import ModelConfig
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.sampling.config import SampleConfig
from muti_control.training.config import ExperimentConfig
from settings.base import Settings
from settings.messages import ConfigError
from settings.reading import from_json, parse_command_line, read_yaml, to_yaml


class Inner(Settings):
    steps: Annotated[int, Field(ge=1)] = 5
    scales: list[float] = [1.0, 2.0]


class Outer(Settings):
    skull: str | None = None
    age: float | None = None
    body_mass: Any = None
    count: int = 1
    flag: bool = False
    names: list[str] = []
    kind: Literal["off", "007"] = "off"
    inner: Inner = Inner(steps=6)
    maybe: Inner | None = None


def refused(schema: type[Settings], *arguments: str, **more: Any) -> str:
    """The message of a command line that must be refused; one line."""
    with pytest.raises(ConfigError) as caught:
        parse_command_line(schema, arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_base_file_and_assignments_in_rising_precedence(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("count: 3\ninner:\n  steps: 30\nmaybe:\n  steps: 2\n")
    base = {"inner": {"steps": 20, "scales": [9]}, "age": 7}
    result = parse_command_line(Outer, [str(file), "inner.steps=40", "maybe=null"], base=base)
    assert result == Outer(age=7.0, count=3, inner=Inner(steps=40, scales=[9.0]))
    assert parse_command_line(Outer, [str(file)], base=base).inner.steps == 30
    assert (
        parse_command_line(Outer, ["inner.scales=[3]"]).inner.steps == 6
    )  # the field's default, not its class's
    file.write_text("inner:\n")  # a section whose lines are commented out
    assert parse_command_line(Outer, [str(file)]) == parse_command_line(Outer, []) == Outer()


@pytest.mark.parametrize(
    "text", ["1_0", "007", "no", "10", "a #b: c.png", "2026-01-01", "[a].png", "C:\\x.png", "true"]
)
def test_text_stays_as_it_is_written(text: str, tmp_path: Path) -> None:
    assert parse_command_line(Outer, [f"skull={text}", "names=[no, 007, 1_0]"]).skull == text
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(Outer(skull=text, names=[text])))
    assert parse_command_line(Outer, [str(file)]) == Outer(skull=text, names=[text])
    if text[0].isalnum() and "#" not in text:  # also without quotes
        file.write_text(f"skull: {text}\nnames: [{text}]\nkind: 007\n")
        assert parse_command_line(Outer, [str(file)]) == Outer(skull=text, names=[text], kind="007")


@given(st.text(min_size=1).filter(lambda text: "${" not in text and text not in ("???", "null", "~")))
def test_any_text_survives_the_command_line(text: str) -> None:
    assert parse_command_line(Outer, [f"skull={text}"]).skull == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("007", 7.0), ("0x10", 16.0), ("-.5", -0.5), ("43", 43.0), ("null", None)]
    + [(text, ConfigError) for text in ("1:30", "1_0", "no", "nan", ".inf", "old", "true", "1,5")],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    if value is ConfigError:
        assert refused(Outer, f"age={text}").startswith("age: got ")
    else:
        assert parse_command_line(Outer, [f"age={text}"]).age == value


def test_other_values_have_their_fields_types() -> None:
    result = parse_command_line(Outer, ["body_mass=fat", "inner.scales=2", "flag=true", "maybe.steps=3"])
    inner = Inner(steps=6, scales=[2.0])
    assert result == Outer(body_mass="fat", flag=True, inner=inner, maybe=Inner(steps=3))
    assert parse_command_line(Outer, ["body_mass=4", "names=only"]) == Outer(body_mass=4, names=["only"])
    assert read_yaml("[1e3, 0o17, yes, 1:30, 2026-01-01]") == [1000.0, 15, "yes", "1:30", "2026-01-01"]


@pytest.mark.parametrize(
    ("argument", "starts"),
    [
        ("inner.stps=3", "inner.stps: unknown setting; did you mean inner.steps?"),
        ("zzz=3", "zzz: unknown setting; there are skull, age,"),
        ("count=x", "count: got 'x', expected a whole number"),
        ("count=true", "count: got true, expected a whole number"),
        ("inner.steps=0", "inner.steps: got 0, expected at least 1"),
        ("inner.scales=[1, a]", "inner.scales[1]: got 'a', expected a number"),
        ("kind=on", "kind: got 'on', expected one of off, 007"),
        ("count=[1", "count: '[1' cannot be read as a value"),
        ("skull=???", "skull: got '???', expected a value"),
        ("skull=${HOME}.png", "skull: got '${HOME}.png', expected a value"),
        ("names=[${x}]", "names"),
        ("--count=2", "--count=2: settings are written without dashes, as in count=2"),
        ("skull.png", "skull.png: not understood; expected "),
        ("sex", "sex: not understood; expected [CONFIG.yaml] [key=value ...], without blanks around =, "),
        ("none.yaml", "none.yaml: no such config file"),
    ],
)
def test_a_bad_argument_is_one_line_that_begins_with_the_key(argument: str, starts: str) -> None:
    assert refused(Outer, argument).startswith(starts)


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("inner:\n  stps: 2", "inner.stps: unknown setting; did you mean inner.steps?"),
        ("inner: 3", "inner: got 3"),
        ("- 1", "holds a list"),
        ("a: &a [*a]", "cannot be read as YAML"),
        ("count: 1\ncount: 2", "cannot be read as YAML"),
        ("skull: ${oc.env:HOME}", "skull: got '${oc.env:HOME}'"),
        ("count: ???", "count: got '???'"),
    ],
)
def test_a_bad_file_is_named_before_the_key(tmp_path: Path, text: str, starts: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert refused(Outer, str(file)).startswith(f"{file}: {starts}")
    assert refused(Outer, str(file), "count=x").startswith((f"{file}: ", "count: "))


def test_settings_of_a_file_are_read_by_the_same_rules() -> None:
    assert from_json(Outer, json.dumps({"inner": {"steps": 2}})).inner == Inner(steps=2)
    for content in ("[1]", '{"inner": {"stps": 2}}', '{"count": 1.5}', '{"skull": "${x}"}', "no JSON"):
        with pytest.raises(ValueError):
            from_json(Outer, content)
    assert refused(Outer, base={"count": "x"}, base_name="weights").startswith("weights: count: got 'x'")


def test_changes_of_a_copy_are_checked() -> None:
    inner = Inner()
    assert inner.with_(steps=3) == Inner(steps=3) and inner.steps == 5
    with pytest.raises(ConfigError, match=r"^steps: got 0"):
        inner.with_(steps=0)
    with pytest.raises(ConfigError, match=r"^stps: .*steps\?$"):
        Inner.of(stps=1)


def test_a_lone_file_and_a_second_one_are_refused(tmp_path: Path) -> None:
    picture, file = tmp_path / "s.png", tmp_path / "c.yaml"
    assert "skull=" not in refused(Outer, str(picture), file_key="skull")
    picture.touch(), file.touch()
    assert refused(Outer, str(picture), file_key="skull").endswith(f"as in skull={picture}")
    assert "second config file" in refused(Outer, str(file), str(file))


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (SampleConfig, {"gender": "sex", "image": "skull", "output": "out", "steps": "sampling.steps"}),
        (
            SampleConfig,
            {"cfg_scale": "sampling.guidance_scale", "checkpoint": "weights", "num": "num_samples"},
        ),
        (ExperimentConfig, {"epochs": "train.max_steps", "learning_rate": "optim.lr", "weights": "init"}),
        (ExperimentConfig, {"batch": "train.batch_size"}),
        (EvaluateConfig, {"ckpt": "weights"}),
    ],
)
def test_another_name_for_a_setting_leads_to_it(schema: type[Settings], names: dict[str, str]) -> None:
    for name, key in names.items():
        assert refused(schema, f"{name}=3").endswith(f"did you mean {key}?")


def test_an_old_key_leads_to_the_new_one(tmp_path: Path) -> None:
    for schema in (SampleConfig, EvaluateConfig):
        assert "spgd.mode" in refused(schema, "guidance.mode=spgd")
    file = tmp_path / "old.yaml"
    file.write_text("guidance:\n  mode: spgd\n")
    assert refused(SampleConfig, str(file)).startswith(f"{file}: guidance: ")


def test_the_config_of_an_older_run_is_read(tmp_path: Path) -> None:
    """Settings that are gone are accepted where they changed nothing, as commit 62346ae wrote them."""
    text = "{{stage: base, name: x, init: i, train: {{batch_size: 4}}, memory: {{card: {}, batch_size: {}}}}}"
    file = tmp_path / "config.yaml"
    for card, size in ((0.0, 4), (0.0, "null")):
        file.write_text(text.format(card, size))
        assert parse_command_line(ExperimentConfig, [str(file), "memory.compile=true"]).memory.compile
    for card, size, key in ((24.0, 4, "card"), (0.0, 2, "batch_size")):
        file.write_text(text.format(card, size))
        assert refused(ExperimentConfig, str(file)).startswith(f"{file}: memory.{key}: ")


def test_a_file_for_another_program_is_named_as_such() -> None:
    training, evaluation = "configs/debug/control.yaml", "configs/evaluate/quick.yaml"
    for schema in (SampleConfig, EvaluateConfig):
        assert "training config" in refused(schema, training)
    for schema in (SampleConfig, ExperimentConfig):
        assert "evaluate.py" in refused(schema, evaluation)
    assert "architecture" in refused(SampleConfig, "models/cldm_v15.yaml")


RUN = "stage=control name=x init=i"
BAD: dict[type[Settings], list[tuple[str, str]]] = {  # arguments, the key that is named
    ExperimentConfig: [
        ("stage=contrl name=x", "stage"),
        ("name=x", "stage"),
        ("stage=pipnet name=", "name"),
        ("stage=control name=x", "init"),
        ("stage=base name=x", "init"),
        ("stage=pipnet name=x model.image_size=256", "model"),
        ("stage=base name=x model.unet.context_dim=5", "model.unet.context_dim"),
        ("stage=base name=x init=i losses.lm=1", "losses"),  # of another stage
        ("stage=base name=x init=i partial.share=0.5", "partial.share"),
        ("stage=pipnet name=x landmarks.predicted=[p.npz]", "landmarks.predicted"),
        (f"{RUN} autoencoder.gan=1", "autoencoder.gan"),
        ("stage=pipnet name=x pipnet.folds=4 pipnet.fold=4", "pipnet.fold"),
        ("stage=pipnet name=x pipnet.network.num_neighbours=106", "pipnet.network.num_neighbours"),
        ("stage=pix2pix name=x pix2pix.generator.image_size=48", "pix2pix.generator.image_size"),
        (f"{RUN} partial.regions=[jaw]", "partial.regions[0]"),
        (f"{RUN} train.max_steps=0", "train.max_steps"),
        (f"{RUN} train.strategy=fsdp", "train.strategy"),
        (f"{RUN} optim.lr=.inf", "optim.lr"),
        (f"{RUN} losses.min_t=600", "losses.min_t"),
        (f"{RUN} losses.measure_every=0", "losses.measure_every"),
        (f"{RUN} losses.discriminator.network.in_channels=3", "losses.discriminator.network.in_channels"),
        (f"{RUN} losses.discriminator.optim.ema_decay=0.9", "losses.discriminator.optim.ema_decay"),
        (f"{RUN} autoencoder.discriminator.optim.ema_decay=0.9", "autoencoder.discriminator.optim.ema_decay"),
        (f"{RUN} pix2pix.discriminator_optim.ema_decay=0.9", "pix2pix.discriminator_optim.ema_decay"),
        (f"{RUN} sampling.steps=0", "sampling.steps"),
    ],
    ModelConfig: [
        ("image_size=100", "image_size"),
        ("unet.norm_groups=7", "unet.norm_groups"),
        ("unet.attention_levels=[9]", "unet.attention_levels"),
        ("schedule.linear_start=0.5", "schedule.linear_start"),
        ("first_stage.ch_mult=[1,2]", "first_stage.ch_mult"),
        ("first_stage.ch=99999999", "first_stage.ch"),
        ("control.landmarks.sigma=0", "control.landmarks.sigma"),
    ],
    SamplingConfig: [
        ("sampler=unipc", "eta"),
        ("control_start=0.9 control_end=0.1", "control_start"),
        ("guidance_drops=[]", "guidance_drops"),
        ("guidance_drops=[face]", "guidance_drops[0]"),
    ],
    SampleConfig: [
        ("spgd.mode=spgd spgd.realism=1", "spgd.discriminator"),
        ("spgd.start=0.5 spgd.end=0.4", "spgd.start"),
        ("missing=jaw", "missing"),
        (f"seed={2**63 - 1}", "seed"),
        ("overwrite=true resume=true", "resume"),
    ],
    EvaluateConfig: [
        ("guided='{strange: {mode: plain}}'", "guided"),
        ("guided='{model: {mode: best}}'", "guided.model: mode"),
        ("guided='{model: 3}'", "guided.model"),
        ("models='{ridge: w}'", "models"),
        ("methods=[best]", "methods"),
        ("recognisers=[]", "recognisers"),
        ("mapping=a.csv", "mapping"),
        ("rectangle=[0.1,0.2]", "rectangle"),
        ("size=100", "size"),
    ],
    CohortConfig: [
        ("num_subjects=5 test_subjects=5", "num_subjects"),
        ("variant_ages=[20,20]", "variant_ages"),
    ],
    SplitConfig: [("valid=1.5", "valid"), ("stratify=hair", "stratify")],
}


@pytest.mark.parametrize("schema", BAD)
def test_a_value_that_no_run_could_use_is_refused_by_its_key(schema: type[Settings]) -> None:
    for arguments, key in BAD[schema]:
        assert refused(schema, *shlex.split(arguments)).startswith(f"{key}: "), arguments


def test_no_settings_module_imports_torch() -> None:
    modules = (
        "ldm.config", "cldm.config", "muti_control.training.config", "muti_control.sampling.config",
        "muti_control.evaluation.protocol.config", "data.cohort.config", "data.ct.config", "data.check.config",
        "data.pack", "data.split", "data.cohort.sheet",
    )  # fmt: skip
    code = f"import sys, {', '.join(modules)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)
