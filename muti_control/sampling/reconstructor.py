"""The Python interface: load a model once, then draw faces of skulls. Programs and interfaces use the same functions.

    from data.biometrics import Attributes
    from muti_control.sampling.reconstructor import Reconstructor

    reconstructor = Reconstructor.load("models/demo/iccr_demo.safetensors")
    result = reconstructor.reconstruct("my_skull.png", Attributes(sex="female", age="35-50"))
    result.save("results/my_skull")

Nothing is printed, nothing is written but by ``save``, and mistakes are ValueErrors in words for the user.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.biometrics import Attributes
from data.cases import NO_SKULL, Case, CaseError, find_cases, read_skull, safe_names
from data.ct.as_skull import is_scan
from data.images import png_of, read_image, to_uint8
from ldm.device import choose_device, choose_precision
from muti_control.case.check import SkullCheck
from muti_control.case.prepare import CheckedSkull, checked_skull
from muti_control.case.runs import claim_case, logged, report_of
from muti_control.conditions.case_landmarks import editable_landmarks
from muti_control.record import check_overwriting, write_record
from muti_control.sampling.config import DEMO_WEIGHTS, SKULL_LANDMARKS, SampleConfig
from muti_control.sampling.draw import DrawnFaces, draw_batches, finish, write_face
from muti_control.sampling.job import Draw, Job, RunFolder, face_name
from muti_control.sampling.outputs import Together, mm_of_face, spread_picture
from muti_control.sampling.prepare import Networks, draw_scan_case, job_of, recommended_sampling
from muti_control.sampling.record import run_record, sheet_of

Skull = str | Path | Image.Image | NDArray[Any] | Case
Progress = Callable[[int, int], None]
Preview = Callable[[Callable[[], NDArray[np.uint8]]], None]


@dataclass(frozen=True)
class Reconstructor:
    """A loaded model. It does not change: several threads may draw with it, one after the other or side by side."""

    networks: Networks
    settings: SampleConfig

    @classmethod
    def load(
        cls,
        weights: str | Path = DEMO_WEIGHTS,
        device: str = "auto",
        precision: str = "auto",
        *,
        model: str | None = None,
        landmark_weights: str | Path = SKULL_LANDMARKS,
        compile: bool = False,
    ) -> Reconstructor:
        """Load weights onto a device; the settings are those of ``sample.py`` (``SampleConfig``).

        Raises:
            ValueError: weights, device or precision that cannot be used.
        """
        cfg = SampleConfig.of(
            weights=str(weights),
            device=device,
            precision=precision,
            model=model,
            landmark_weights=str(landmark_weights),
            compile=compile,
        )
        place = choose_device(device)
        networks = Networks.load(cfg, place, choose_precision(cfg.precision, place))
        outputs = networks.model.cfg.unet.num_control_outputs
        recommended = cfg.sampling.with_(**recommended_sampling(networks.metadata, outputs))
        return cls(networks, cfg.with_(sampling=recommended))

    def read(self, skull: Skull, attributes: Attributes | None = None, name: str | None = None) -> Case:
        """Return the case of a skull, which stands for it in the other methods: a scan is then drawn once.

        Raises:
            ValueError: it cannot be read.
        """
        return self._case(skull, name, attributes or Attributes(), self.settings)

    def check(self, skull: Skull, attributes: Attributes | None = None) -> SkullCheck:
        """Return the traffic light of a skull and its reasons, before anything is done to it. Raises: ValueError."""
        return self.prepare(skull, attributes).before

    def prepare(self, skull: Skull, attributes: Attributes | None = None) -> CheckedSkull:
        """Return the skull as it is drawn, with its checks before and after. Raises: ValueError."""
        case = self.read(skull, attributes)
        picture, _ = read_image(case.source, self.networks.model.cfg.image_size)
        return checked_skull(picture, self.networks.calibration, case.attributes)

    def reconstruct(
        self,
        skull: Skull | None,
        attributes: Attributes | None = None,
        num_samples: int = 8,
        seed: int = 0,
        landmarks: str | Path = "auto",
        texture: str | Path | None = None,
        spgd: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
        *,
        name: str | None = None,
        **settings: Any,
    ) -> Reconstruction:
        """Draw faces of one skull.

        Args:
            skull: a file, a picture of Pillow, an array (H, W) or (H, W, 3), uint8 or floats in [0, 1], or a head CT
                as ``sample.py`` takes it, or the case that :meth:`read` returned; None: no skull, what else is given
                draws the face.
            attributes: what is known of the person; each face assumes what is not.
            landmarks: auto (read off the skull), none, or a file of points in px of the skull's picture.
            texture: picture of a face whose look of the skin is wanted; None: what suits the weights.
            spgd, sampling: settings by name that differ from the defaults and from what the weights recommend.
            progress: called as (steps done, steps in all) after every denoising step. What it raises ends the drawing.
            preview: called before each ``progress`` with a function that decodes the batch's faces as they are at this
                step, (B, H, W, 3) uint8. Decoding costs time: call it where a picture is wanted.
            name: of the case, in names of files. settings: others of ``SampleConfig``, such as mm_per_px, missing.

        Raises:
            ValueError: an input that cannot be used; the message says what to do.
        """
        attributes = attributes or Attributes()
        named = skull.skull_path if isinstance(skull, Case) else skull
        cfg = self.settings.with_(
            skull=NO_SKULL if skull is None else str(named) if isinstance(named, (str, Path)) else None,
            **{name: list(x) if isinstance(x, tuple) else x for name, x in attributes.known.items()},
            num_samples=num_samples,
            seed=seed,
            landmarks=str(landmarks),
            texture="auto" if texture is None else str(texture),
            spgd=self.settings.spgd.with_(**(spgd or {})),
            sampling=self.settings.sampling.with_(**(sampling or {})),
            **settings,
        )
        case = self._case(skull, name, attributes, cfg)
        job = job_of(cfg, self.networks, [case], Path())
        faces: dict[str, tuple[Draw, DrawnFaces, Any, int]] = {}
        done, batches = 0, job.missing
        total = len(batches) * job.sampling.steps

        def step(_first: int, _batch: Sequence[Draw]) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        def show(decode: Callable[[], Tensor]) -> None:
            if preview is not None:
                preview(lambda: to_uint8(decode().permute(0, 2, 3, 1).cpu().numpy()))

        with closing(draw_batches(job, batches, step, preview and show)) as drawn:
            for batch, pixels, guided in drawn:
                pixels.wait()
                faces |= {face_name(*draw[:2]): (draw, pixels, guided, i) for i, draw in enumerate(batch)}
        return Reconstruction(job, list(faces.values()))

    def _case(self, skull: Skull | None, name: str | None, attributes: Attributes, cfg: SampleConfig) -> Case:
        """Return the case of a skull. Raises: ValueError: it cannot be read."""
        if isinstance(skull, Case):
            return replace(skull, attributes=attributes, biometrics=attributes.biometrics)
        if skull is not None and not isinstance(skull, (str, Path)):
            own = safe_names([name or "skull"])[0]
            path, picture = Path(f"{own}_skull.png"), png_of(skull)
            return Case(own, path, attributes.biometrics, attributes=attributes, picture=picture)
        if skull is not None and is_scan(Path(skull)):
            drawn_with = cfg.ct.drawn_with(self.networks.model.cfg.image_size)
            cases = [draw_scan_case(Path(skull), attributes, drawn_with)]
        else:
            cases = find_cases(NO_SKULL if skull is None else skull, attributes.known)
        if len(cases) > 1:
            raise CaseError(
                f"skull: {skull} holds {len(cases)} skulls, expected one; reconstruct each of its files"
            )
        return cases[0] if name is None else replace(cases[0], name=safe_names([name])[0])


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Faces of one skull. job: the run behind them."""

    job: Job
    drawn: Sequence[tuple[Draw, DrawnFaces, Any, int]] = field(repr=False)

    @cached_property
    def faces(self) -> list[NDArray[np.uint8]]:
        """The faces, (H, W, 3) uint8 each."""
        return [pixels.wait()[i] for _, pixels, _, i in self.drawn]

    @property
    def people(self) -> list[dict[str, dict[str, Any]]]:
        """Each face's attributes: value, and source (stated, assumed, or unknown where nothing is known)."""
        return [case.attributes.sources(case.biometrics) for (case, _, _), *_ in self.drawn]

    @cached_property
    def together(self) -> Together | None:
        """Mean, spread and landmarks of the faces; None of a single face."""
        return Together.of(self.faces, self.job.face_reader) if len(self.faces) > 1 else None

    @property
    def mean(self) -> NDArray[np.uint8]:
        """The mean face, (H, W, 3) uint8."""
        return self.faces[0] if self.together is None else self.together.mean

    @property
    def spread(self) -> NDArray[np.float32] | None:
        """Standard deviation over the faces, (H, W), grey levels of 255; None of a single face."""
        return None if self.together is None else self.together.spread

    @property
    def landmarks(self) -> NDArray[np.float32] | None:
        """Landmarks read off each face, (n, N, 2) px; None of a single face, or where no network reads them."""
        return None if self.together is None else self.together.points

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the input and the settings."""
        return self.job.cautions

    @property
    def landmarks_text(self) -> str | None:
        """The landmarks that shaped the faces, as a file to edit; None where none did."""
        job, case = self.job, self.job.cases[0]
        if job.landmarks is None:
            return None
        skull = torch.from_numpy(read_skull(case, job.model.cfg.image_size)).permute(2, 0, 1)[None]
        return editable_landmarks(case, job.landmarks, skull)[0]

    @cached_property
    def record(self) -> dict[str, Any]:
        """What is needed to repeat the faces, as in ``record.json``; their hashes come with ``save``."""
        return run_record(self.job)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write what ``sample.py`` writes: faces, mean, spread, overlay, sheet, landmarks and record.

        Raises:
            ValueError: the folder holds something else, or cannot be written to.
        """
        folder = Path(folder)
        earlier = claim_case(folder, overwrite)
        job = replace(self.job, folder=RunFolder(folder, () if earlier is None else earlier.files))
        check_overwriting(job.folder.outdated, [folder / file for file in job.files], job.hashes)
        with logged(job), job.all_or_nothing():
            job.folder.start()
            record = run_record(job)
            write_record(folder, record)
            for draw, pixels, guided, i in self.drawn:
                write_face(job, draw, pixels, guided, i)
            finish(job, record)
        report_of(job)
        return folder

    def _repr_png_(self) -> bytes:
        """Show the sheet of all faces in a notebook."""
        return png_of(sheet_of(self.job, self.job.cases, lambda case, k: self.faces[k]))

    def _repr_html_(self) -> str:
        """Show the faces, and what a reader should know of them, in a notebook."""
        case = self.job.cases[0]
        pictures = [self._repr_png_()]
        if self.together is not None:
            mm = mm_of_face(case, self.job.model.cfg.image_size)
            pictures.append(png_of(spread_picture(self.together, case.name, self.job.calibration, mm)))
        shown = "".join(
            f'<img style="max-width:100%" alt="{html.escape(case.name)}" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for png in pictures
        )
        return shown + "".join(f"<p>{html.escape(warning)}</p>" for warning in self.warnings)
