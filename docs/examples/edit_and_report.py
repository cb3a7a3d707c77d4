# %% [markdown]
# # Move landmarks, draw again, and write the report
#
# `python docs/examples/edit_and_report.py FOLDER` writes two cases below FOLDER. FOLDER must not exist.
# What it draws is an approximation, not an identification.

# %% Load a model, and draw the first faces.
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed after `pip install -e .`

from data.biometrics import Attributes
from muti_control.case.contents import Heading
from muti_control.case.report import write_report
from muti_control.case.verify import verify
from muti_control.sampling.reconstructor import Reconstructor

WEIGHTS = ROOT / "models/demo/iccr_demo.safetensors"
STEPS, FACES, FORMAT = 6, 4, "pdf"  # "html" writes the page alone, and needs no extra `report`
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "results/example")

reconstructor = Reconstructor.load(WEIGHTS)
skull = ROOT / "data/pairedCS/skull/s00001.png"
person = Attributes(sex="male", age="20-35")
first = reconstructor.reconstruct(skull, person, num_samples=FACES, sampling={"steps": STEPS})
before = first.save(OUT / "before")

# %% The landmarks that shaped these faces are in a file: a named point a line, in px of the skull picture.
path = next(before.glob("*_landmarks.json"))
content = json.loads(path.read_text(encoding="utf-8"))
print(path.name, len(content["points"]), "points, such as", content["points"][0])

# %% Move the chin down by 5 px: the points of the jaw that lie nearest to it.
for point in content["points"]:
    if point["name"] in ("jaw 2 right", "jaw 1 right", "menton", "jaw 1 left", "jaw 2 left"):
        point["y"] += 5
edited = OUT / "edited.json"
edited.write_text(json.dumps(content), encoding="utf-8")

# %% Draw again with the same seeds. SPGD pulls the face to the moved points; without it the bone holds it.
second = reconstructor.reconstruct(
    skull,
    person,
    num_samples=FACES,
    landmarks=edited,
    sampling={"steps": STEPS},
    spgd={"mode": "spgd", "scale": 0.01},
)
after = second.save(OUT / "after")
moved = abs(second.mean.astype(int) - first.mean).mean()
print(f"the mean face changed by {moved:.2f} grey levels on average")

# %% Write the report. It is made from the files of the folder alone.
for written in write_report(after, Heading(case_number="7/2026", examiner="A. Name"), FORMAT):
    print(written)

# %% Nothing in the folder was changed behind its log.
print("differences:", verify(after).differences)
