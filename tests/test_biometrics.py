"""The person's data: what is accepted, what is refused, and the one prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.biometrics import BODY_MASS_WORDS, Biometrics, BiometricsError, age_level, prompt


def test_prompt_is_the_published_sentence() -> None:
    assert prompt(Biometrics("male", 43)) == "3D face scan,Asian male,age level 3,normal face."
    other = Biometrics(sex="female", age=9.5, ethnicity="European", body_mass=1)
    assert prompt(other) == "3D face scan,European female,age level 1,very thin face."


@pytest.mark.parametrize(
    ("age", "level"),
    [(0, 1), (13.99, 1), (14, 2), (29.9, 2), (30, 3), (49, 3), (50, 4), (64.5, 4), (65, 5), (120, 5)],
)
def test_age_levels_begin_at_14_30_50_65(age: float, level: int) -> None:
    assert age_level(age) == level


@pytest.mark.parametrize(
    ("sex", "age", "body_mass", "level"),
    [("M", 43, "1", 1), ("m", 43.0, 4, 4), ("MALE", "43", 5.0, 5), (" Male ", " 43.0 ", "Slightly  Fat", 5)],
)
def test_parse_reads_what_people_write(sex: str, age: object, body_mass: object, level: int) -> None:
    assert Biometrics.parse(sex=sex, age=age, body_mass=body_mass) == Biometrics("male", 43.0, "Asian", level)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sex", "x"), ("sex", ""), ("sex", 1), ("sex", None), ("sex", True),
        ("age", -1), ("age", 121), ("age", "old"), ("age", float("nan")), ("age", "inf"), ("age", True), ("age", None),
        ("age", "4_3"),
        ("body_mass", 0), ("body_mass", 6), ("body_mass", "6"), ("body_mass", 3.5), ("body_mass", "obese"),
        ("body_mass", True), ("body_mass", [4]), ("body_mass", "nan"),
        ("ethnicity", ""), ("ethnicity", "Asian,male"), ("ethnicity", "a\nb."), ("ethnicity", 3), ("ethnicity", None),
    ],
)  # fmt: skip
def test_parse_refuses_and_names_the_field(field: str, value: object) -> None:
    values: dict[str, object] = {"sex": "F", "age": 30, "body_mass": 4, "ethnicity": "Asian"} | {field: value}
    with pytest.raises(BiometricsError, match=f"^{field}: got .*, expected ") as caught:
        Biometrics.parse(**values)
    assert caught.value.field == field


@given(
    st.sampled_from(["male", "female"]),
    st.floats(0, 120),
    st.sampled_from(["Asian", "Sub-Saharan African", "東亞"]),
    st.sampled_from(sorted(BODY_MASS_WORDS)),
)
def test_parse_keeps_valid_values_and_the_prompt_has_four_parts(
    sex: str, age: float, ethnicity: str, level: int
) -> None:
    b = Biometrics(sex, age, ethnicity, level)
    assert Biometrics.parse(sex=sex, age=age, body_mass=level, ethnicity=ethnicity) == b
    assert len(prompt(b).split(",")) == 4
