"""Command lines and YAML merged into typed settings: what wins, what stays text, and which key an error names."""

from __future__ import annotations

import json
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
from settings.messages import ConfigError, known_keys
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
    result = parse_command_line(
        Outer, ["body_mass=slightly fat", "inner.scales=2", "flag=true", "maybe.steps=3"]
    )
    assert result == Outer(
        body_mass="slightly fat", flag=True, inner=Inner(steps=6, scales=[2.0]), maybe=Inner(steps=3)
    )
    assert parse_command_line(Outer, ["body_mass=4", "names=only"]) == Outer(body_mass=4, names=["only"])
    assert read_yaml("a: [1e3, 0o17, yes, 1:30, 2026-01-01]") == {
        "a": [1000.0, 15, "yes", "1:30", "2026-01-01"]
    }


@pytest.mark.parametrize(
    ("argument", "starts"),
    [
        ("inner.stps=3", "inner.stps: unknown setting; did you mean inner.steps?"),
        ("steps=3", "steps: unknown setting; did you mean inner.steps?"),
        ("zzz=3", "zzz: unknown setting; known: skull, age,"),
        ("count=x", "count: got 'x', expected a whole number"),
        ("count=1.5", "count: got 1.5, expected a whole number"),
        ("count=true", "count: got true, expected a whole number"),
        ("flag=yes", "flag: got 'yes', expected true or false"),
        ("inner=3", "inner: got 3, expected settings"),
        ("inner.steps=0", "inner.steps: got 0, expected at least 1"),
        ("inner.scales=[1, a]", "inner.scales[1]: got 'a', expected a number"),
        ("kind=on", "kind: got 'on', expected one of off, 007"),
        ("count=[1", "count: '[1' cannot be read as a value"),
        ("skull=???", "skull: got '???', expected a value"),
        ("skull=${HOME}.png", "skull: got '${HOME}.png', expected a value"),
        ("names=[${x}]", "names"),
        ("--count=2", "--count=2: settings are written without dashes, as in count=2"),
        ("skull.png", "skull.png: not understood; expected "),
        ("none.yaml", "none.yaml: no such config file"),
    ],
)
def test_a_bad_argument_is_one_line_that_begins_with_the_key(argument: str, starts: str) -> None:
    assert refused(Outer, argument).startswith(starts)


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("foo: 1", "foo: unknown setting"),
        ("inner:\n  stps: 2", "inner.stps: unknown setting; did you mean inner.steps?"),
        ("inner:\n  steps: x", "inner.steps: got 'x'"),
        ("inner: 3", "inner: got 3"),
        ("- 1", "holds a list"),
        ("n: [1", "cannot be read as YAML"),
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
    ("schema", "argument", "meant"),
    [
        (SampleConfig, "gender=male", "sex"),
        (SampleConfig, "image=a.png", "skull"),
        (SampleConfig, "output=o", "out"),
        (SampleConfig, "steps=20", "sampling.steps"),
        (SampleConfig, "cfg_scale=2", "sampling.guidance_scale"),
        (SampleConfig, "checkpoint=a", "weights"),
        (SampleConfig, "num=3", "num_samples"),
        (ExperimentConfig, "epochs=3", "train.max_steps"),
        (ExperimentConfig, "learning_rate=1", "optim.lr"),
        (ExperimentConfig, "weights=a", "init"),
        (ExperimentConfig, "batch=4", "train.batch_size"),
        (EvaluateConfig, "ckpt=a", "weights"),
    ],
)
def test_another_name_for_a_setting_leads_to_it(schema: type[Settings], argument: str, meant: str) -> None:
    assert refused(schema, argument).endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("schema", [SampleConfig, EvaluateConfig])
def test_an_old_key_leads_to_the_new_one(schema: type[Settings], tmp_path: Path) -> None:
    assert refused(schema, "guidance.mode=spgd") == "guidance.mode: the key is now spgd.mode"
    assert "configs/sd15" in refused(ExperimentConfig, "memory.card=24")
    file = tmp_path / "old.yaml"
    file.write_text("guidance:\n  mode: spgd\n")
    assert refused(schema, str(file)) == f"{file}: guidance: the key is now spgd"


@pytest.mark.parametrize(
    ("schema", "file", "kind"),
    [
        (SampleConfig, "configs/debug/control.yaml", "training config"),
        (EvaluateConfig, "configs/debug/control.yaml", "training config"),
        (SampleConfig, "configs/evaluate/quick.yaml", "evaluate.py"),
        (ExperimentConfig, "configs/evaluate/quick.yaml", "evaluate.py"),
        (SampleConfig, "models/cldm_v15.yaml", "architecture"),
    ],
)
def test_a_file_for_another_program_is_named_as_such(schema: type[Settings], file: str, kind: str) -> None:
    assert kind in refused(schema, file)


BAD = [  # (schema, arguments, the key that is named)
    (ExperimentConfig, "stage=contrl name=x", "stage"),
    (ExperimentConfig, "name=x", "stage"),
    (ExperimentConfig, "stage=pipnet name=", "name"),
    (ExperimentConfig, "stage=control name=x", "init"),
    (ExperimentConfig, "stage=base name=x", "init"),
    (ExperimentConfig, "stage=pipnet name=x model.image_size=256", "model"),
    (ExperimentConfig, "stage=base name=x init=i losses.lm=1", "losses"),
    (ExperimentConfig, "stage=base name=x init=i partial.share=0.5", "partial.share"),
    (ExperimentConfig, "stage=control name=x init=i partial.regions=[jaw]", "partial.regions[0]"),
    (ExperimentConfig, "stage=control name=x init=i train.max_steps=0", "train.max_steps"),
    (ExperimentConfig, "stage=control name=x init=i optim.lr=.inf", "optim.lr"),
    (ExperimentConfig, "stage=control name=x init=i losses.min_t=600", "losses.min_t"),
    (ExperimentConfig, "stage=control name=x init=i losses.measure_every=0", "losses.measure_every"),
    (ExperimentConfig, "stage=control name=x init=i sampling.steps=0", "sampling.steps"),
    (ExperimentConfig, "stage=pipnet name=x pipnet.folds=4 pipnet.fold=4", "pipnet.fold"),
    (
        ExperimentConfig,
        "stage=pipnet name=x pipnet.network.num_neighbours=106",
        "pipnet.network.num_neighbours",
    ),
    (
        ExperimentConfig,
        "stage=pix2pix name=x pix2pix.generator.image_size=48",
        "pix2pix.generator.image_size",
    ),
    *(
        (ExperimentConfig, f"stage=pipnet name=x {key}=0.9", key)
        for key in (
            "losses.discriminator.optim.ema_decay",
            "autoencoder.discriminator.optim.ema_decay",
            "pix2pix.discriminator_optim.ema_decay",
        )
    ),
    (ExperimentConfig, "stage=base name=x model.unet.context_dim=5", "model.unet.context_dim"),
    (ModelConfig, "image_size=100", "image_size"),
    (ModelConfig, "unet.norm_groups=7", "unet.norm_groups"),
    (ModelConfig, "unet.attention_levels=[9]", "unet.attention_levels"),
    (ModelConfig, "schedule.linear_start=0.5", "schedule.linear_start"),
    (ModelConfig, "first_stage.ch_mult=[1, 2]", "first_stage.ch_mult"),
    (ModelConfig, "first_stage.ch=99999999", "first_stage.ch"),
    (ModelConfig, "control.landmarks.sigma=0", "control.landmarks.sigma"),
    (SamplingConfig, "sampler=unipc", "eta"),
    (SamplingConfig, "control_start=0.9 control_end=0.1", "control_start"),
    (SamplingConfig, "guidance_drops=[]", "guidance_drops"),
    (SamplingConfig, "guidance_drops=[face]", "guidance_drops[0]"),
    (SampleConfig, "spgd.mode=spgd spgd.realism=1", "spgd.discriminator"),
    (SampleConfig, "spgd.start=0.5 spgd.end=0.4", "spgd.start"),
    (SampleConfig, "missing=jaw", "missing"),
    (SampleConfig, f"seed={2**63 - 1}", "seed"),
    (SampleConfig, "overwrite=true resume=true", "resume"),
    (EvaluateConfig, "guided={strange: {mode: plain}}", "guided"),
    (EvaluateConfig, "guided={model: {mode: best}}", "guided.model: mode"),
    (EvaluateConfig, "guided={model: 3}", "guided.model"),
    (EvaluateConfig, "models={ridge: w}", "models"),
    (EvaluateConfig, "methods=[best]", "methods"),
    (EvaluateConfig, "recognisers=[]", "recognisers"),
    (EvaluateConfig, "mapping=a.csv", "mapping"),
    (EvaluateConfig, "rectangle=[0.1, 0.2]", "rectangle"),
    (EvaluateConfig, "size=100", "size"),
    (CohortConfig, "num_subjects=5 test_subjects=5", "num_subjects"),
    (CohortConfig, "variant_ages=[20, 20]", "variant_ages"),
    (SplitConfig, "valid=1.5", "valid"),
    (SplitConfig, "stratify=hair", "stratify"),
]


@pytest.mark.parametrize(("schema", "arguments", "key"), BAD, ids=[f"{a}->{key}" for _, a, key in BAD])
def test_a_value_that_no_run_could_use_is_refused_by_its_key(
    schema: type[Settings], arguments: str, key: str
) -> None:
    command = (
        arguments.split(" ") if "{" not in arguments and "[" not in arguments else split_outside(arguments)
    )
    assert refused(schema, *command).startswith(f"{key}: ")


def split_outside(arguments: str) -> list[str]:
    """Words that may hold spaces within brackets."""
    words: list[str] = []
    for word in arguments.split(" "):
        if words and sum(words[-1].count(c) for c in "[{") > sum(words[-1].count(c) for c in "]}"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def test_known_keys_are_those_that_can_be_set() -> None:
    assert known_keys(Outer)[-4:] == ["inner.steps", "inner.scales", "maybe.steps", "maybe.scales"]


def test_no_settings_module_imports_torch() -> None:
    modules = (
        "ldm.config", "cldm.config", "muti_control.training.config", "muti_control.sampling.config",
        "muti_control.evaluation.protocol.config", "data.cohort.config", "data.ct.config", "data.check.config",
        "data.pack", "data.split", "data.cohort.sheet",
    )  # fmt: skip
    code = f"import sys, {', '.join(modules)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)
