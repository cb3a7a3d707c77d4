# %% [markdown]
# # From one skull to faces, in Python
#
# Open this file as a notebook (VS Code, PyCharm, Jupyter with jupytext), or run it:
# `python docs/examples/one_skull.py [FOLDER_TO_SAVE]`.
# It uses the demo model. What it draws is an approximation, not an identification.

# %% Load a model. It is loaded once and draws as often as you like.
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed after `pip install -e .`

from data.biometrics import Attributes
from muti_control.sampling.reconstructor import Reconstructor

WEIGHTS = ROOT / "models/demo/iccr_demo.safetensors"
STEPS, FACES = 6, 8
reconstructor = Reconstructor.load(WEIGHTS, device="auto", precision="auto")

# %% Say what is known of the person. The rest is unknown: each face assumes values that are possible.
skull = ROOT / "data/pairedCS/skull/s00001.png"
person = Attributes(sex="male", age="20-35")  # ethnicity and body_mass are unknown
result = reconstructor.reconstruct(skull, person, num_samples=FACES, seed=0, sampling={"steps": STEPS})
result  # in a notebook: the sheet of all faces, and their spread

# %% What each face assumes. "stated" is yours, "assumed" was drawn.
for k, attributes in enumerate(result.people):
    print(k, {name: f"{entry['value']} ({entry['source']})" for name, entry in attributes.items()})

# %% What you should know of this input and these settings.
for warning in result.warnings:
    print("-", warning)

# %% The faces are arrays of 8-bit grey levels; mean and spread show what they have in common, and what is open.
print(len(result.faces), result.faces[0].shape, result.mean.shape)
print(f"spread: {result.spread.mean():.1f} grey levels on average")
if result.landmarks is not None:
    apart = result.landmarks.std(axis=0)  # (points, 2), px
    print(f"landmarks: {apart.mean():.1f} px, the least certain one {apart.max():.1f} px")


# %% Long drawings report their progress, and can be cancelled: raise an error in `progress`.
def stop_after_two(step: int, total: int) -> None:
    print(f"step {step} of {total}")
    if step == 2:
        raise KeyboardInterrupt


try:
    reconstructor.reconstruct(
        skull, person, num_samples=1, sampling={"steps": STEPS}, progress=stop_after_two
    )
except KeyboardInterrupt:
    print("cancelled; nothing was written")

# %% A picture in memory serves as well: an array (uint8, or floats from 0 to 1), or a picture of Pillow.
from PIL import Image

with Image.open(skull) as picture:
    again = reconstructor.reconstruct(
        picture, person, num_samples=1, seed=0, sampling={"steps": STEPS}, name="again"
    )
apart = abs(
    again.faces[0].astype(int) - result.faces[0]
)  # drawn alone, not with others: last bits may differ
print("the same face:", bool(apart.mean() < 0.5))

# %% Save what `sample.py` would write: faces, mean, spread, overlay, sheet, landmarks and record.json.
if len(sys.argv) > 1:
    print(result.save(sys.argv[1]))
