# %% [markdown]
# # Train on ten pairs, and draw with the result
#
# `python docs/examples/ten_pairs.py FOLDER` writes pairs, run and faces below FOLDER, which must not exist.
# Ten pairs are a test of the way, and no training. Put your own pictures in their place.

# %% A data set: two folders of pictures, and a list with a line for each pair.
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not needed after `pip install -e .`

import train
from data.biometrics import Attributes
from data.split import main as split
from muti_control.sampling.reconstructor import Reconstructor

CONFIG = ROOT / "configs/demo/control.yaml"
WEIGHTS = ROOT / "models/demo/iccr_demo.safetensors"  # where the training starts
STEPS, MORE = 20, ["train.batch_size=4", "train.num_valid=2"]
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "results/ten_pairs")
SHIPPED = ROOT / "data"

lines = [json.loads(line) for line in (SHIPPED / "split_data/train.json").read_text().splitlines()[:10]]
for line in lines:
    for folder, name in (("skull", line["source"]), ("craniofacial", line["target"])):
        (OUT / "pairedCS" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(SHIPPED / "pairedCS" / folder / name, OUT / "pairedCS" / folder / name)
FIELDS = ("source", "target", "subject", "gender", "age", "ethnicity", "body_mass")
everyone = OUT / "split_data/all.json"
everyone.parent.mkdir()
everyone.write_text("\n".join(json.dumps({k: line[k] for k in FIELDS}) for line in lines), encoding="utf-8")

# %% Three lists that share no person. Ten people leave two for validation and two for the test.
split([str(everyone), str(OUT / "split_data")])

# %% Train. The same call continues a run that was stopped. "0" means: finished.
settings = [
    f"out={OUT}",
    "name=run",
    f"init={WEIGHTS}",
    f"data.root={OUT}",
    f"train.max_steps={STEPS}",
    *MORE,
]
print(train.main([str(CONFIG), *settings]))

# %% Draw the two people of the test list with the new weights.
reconstructor = Reconstructor.load(OUT / "run/model.safetensors")
for text in (OUT / "split_data/test.json").read_text(encoding="utf-8").splitlines():
    line = json.loads(text)
    person = Attributes(
        sex=line["gender"], age=line["age"], ethnicity=line["ethnicity"], body_mass=line["body_mass"]
    )
    result = reconstructor.reconstruct(
        OUT / "pairedCS/skull" / line["source"], person, num_samples=2, sampling={"steps": 6}
    )
    print(result.save(OUT / "faces" / line["subject"]))
