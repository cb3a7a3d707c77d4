"""Lists as people write them, in spreadsheets and by hand: what is read, and what is refused by line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from data.biometrics import Attributes
from data.cases import find_cases
from data.manifest import COLUMNS, ManifestError, Record, main, read_skulls
from muti_control.evaluation.methods.elsewhere import find_faces
from muti_control.evaluation.protocol.inputs import InputError
from settings.parsing import ContentError

WOMAN, MAN = Attributes("female", 43.5, None, 4), Attributes("male", 70, None, 3)
COMMA, DECOMPOSED = "F\u00e4lle/Sch\u00e4del.png", "Fa\u0308lle/Scha\u0308del.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lists")
    for name in ("a.png", "sub/b.png", COMMA):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (32, 32), 9).save(root / name)
    return root


@pytest.mark.parametrize(
    "text",
    [
        "skull,sex,age,body_mass\na.png,F,43.5,4\nsub/b.png,M,70,3\n",
        'skull,sex,age,body_mass\n"a.png","F","43,5","4,0"\n"sub/b.png", "M", 70, "slightly thin"\n',
        "\ufeffSkull;Gender;Age (years);BodyMass;;\r\n;;;;;\r\na.png;f;43,5;normal;;\r\n;;;;;\r\nsub\\b.png;m;70;3;;",
        "Sep=;\r\nFile name;sex;age;body-mass\r\na.png;F;43,5;4\r\nsub/b.png;M;70;3\r\n",
        "path|sex|age|body_mass\na.png|F|43,5|4\nsub/b.png|M|70|3\n",
        "sep=;\r\nPICTURE;sex;age;body-mass;case no.\r\na.png;F;43,5;4;\r\nsub/b.png;M;70;3;17\r\n",
        "\r\n\r\nskull\tsex\tage\tBody Mass\tnotes\r\na.png\tF\t43,5\t4\t\r\nsub/b.png\tM\t70\t3\tx\r\n",
        'sex,"age",body_mass,skull,notes\rF,43.5,4,a.png,"two\rlines, and ""more"""\rM,70,3,sub/b.png,\r',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_what_spreadsheets_write_is_read(folder, text, encoding):
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    cases = find_cases(path)
    assert [(case.name, case.attributes) for case in cases] == [("a", WOMAN), ("b", MAN)]
    assert [case.skull_path for case in cases] == [folder / "a.png", folder / "sub/b.png"]


def test_names_of_files_are_whole_relative_or_differ_in_the_form_of_accents(folder, tmp_path, monkeypatch):
    path = tmp_path / "list.tsv"
    path.write_text(f"skull\tname\ttrue_face\n{folder / DECOMPOSED}\tFall 3\t{folder / 'a.png'}\n")
    (case,) = find_cases(path)
    assert (case.name, case.skull_path, case.face_path) == ("Fall_3", folder / COMMA, folder / "a.png")
    path.write_text("skull\nsub/b.png\n")
    (tmp_path / "loop.png").symlink_to("loop.png")
    monkeypatch.chdir(folder)  # a list that was moved away
    assert find_cases(path)[0].skull_path == Path("sub/b.png")
    (tmp_path / "skull/sub").mkdir(parents=True), (tmp_path / "sub").mkdir()
    for place in ("sub", "skull/sub"):
        (tmp_path / place / "b.png").touch()
    with pytest.raises(ManifestError, match=r"line 2: skull: .* may be "):
        find_cases(path)


def test_a_list_may_be_json_lines_and_say_little(folder):
    path = folder / "list.jsonl"
    rows = [
        {"Skull": "a.png", "Gender": "F", "AGE": "35-50", "Body Mass": None},
        {"source": "sub/b.png", "sex": ""},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [line.person for line in read_skulls(path)] == [{"sex": "F", "age": "35-50"}, {}]
    cases = find_cases(path, dict(sex="M", age=70, body_mass=3), limit=1)
    assert [case.attributes for case in cases] == [MAN]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,F,43\nsub/b.png,M,3\n", "first line is 'a.png,F,43'; expected .* such as skull,name"),
        ("", "first line is ''"),
        ("skull,sex\n", "holds no skulls"),
        ("skull,sex,gender\na.png,F,M\n", "sex: two columns"),
        ("skull,age,sex\na.png,43,5,F\n", "line 2: 'F' stands in no column"),
        ("skull,,age\na.png,x,43\n", "line 2: 'x' stands in no column"),
        ('skull,age\n"a.png,43\nsub/b.png,4\n', "line 2: unexpected end"),
        ("skull,notes\na.png,\nsub/b.png," + "x" * 200_000, "line 3: a cell has more than 131,072 letters"),
        ("skull,body_mas\na.png,4\n", "line 2: body_mas: .*'body_mass'"),
        ("skull,bmi\na.png,22\n", "line 2: bmi: .*'body_mass'"),
        ("skull\na.png\n\na.png\n", "line 4: skull: .* already on line 2"),
        ("skull,age\n\n,43\n", "line 3: skull: is missing"),
        ("skull,age\na.png,nan\n", "line 2: age: got 'nan'"),
        ("skull\nno.png\n", "line 2: skull: no file"),
        ("skull,sex,age,body_mass\na.png,F,43,4\nsub/b.png,F,forty,4\n", "line 3: age: got 'forty'"),
        ("skull,sex\n\u00e4.png,F\n".encode("latin-1"), "line 2: byte 0xe4"),
        ("skull\na.png".encode("utf-16-le"), "zero bytes"),
    ],
)
def test_a_list_is_refused_by_line_and_column(folder, text, message):
    path = folder / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ContentError, ManifestError), match=message) as caught:
        find_cases(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_column_that_serves_nothing_is_told(folder, capsys):
    (folder / "notes.csv").write_text("skull,Lab no.,Found by\na.png,1,2\n")
    assert len(find_cases(folder / "notes.csv")) == 1
    assert "not used: Found by, Lab no." in capsys.readouterr().err


def test_the_template_lists_the_pictures_at_hand(folder, capfdbinary, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["template", "F\u00e4lle"]) == 0
    text = capfdbinary.readouterr().out.decode("utf-8")
    assert text == f"\ufeff{','.join(COLUMNS)}\r\n{COMMA},Sch\u00e4del,,,,,,,\r\n"
    Path("skulls.csv").write_text(text, encoding="utf-8")
    (case,) = find_cases("skulls.csv")
    assert (case.name, case.skull_path, case.biometrics) == ("Sch\u00e4del", Path(COMMA), None)
    assert main(["template", "none"]) == main(["template"]) == 2


def test_the_mapping_of_faces_is_read_by_the_same_rules(tmp_path):
    faces, mapping = tmp_path / "faces", tmp_path / "whose.csv"
    faces.mkdir()
    Image.new("L", (32, 32), 9).save(faces / "Gesi\u0308cht.png")
    probe = Record("A\u0308/1.png", None, WOMAN, "s1", None, None, 1, tmp_path / "1.png", None)
    for text in (
        "probe,picture\ns1,Ges\u00efcht.png\n",
        "Picture;;PROBE \r\n;;\r\nGes\u00efcht.png;;\u00c4/1\r\n",
    ):
        for encoding in ("utf-8-sig", "utf-16"):
            mapping.write_bytes(text.encode(encoding))
            assert find_faces(faces, str(mapping), [probe]) == [(faces / "Gesi\u0308cht.png",)]
    mapping.write_text("s1,x.png\n")
    with pytest.raises(InputError, match=r"^mapping: .*probe,picture"):
        find_faces(faces, str(mapping), [probe])
