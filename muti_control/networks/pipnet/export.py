"""A landmark network in other forms: the public release's, and ONNX.

    python -m muti_control.networks.pipnet.export weights=models/demo/pipnet_face.safetensors
    python -m muti_control.networks.pipnet.export weights=... out=muti_control/pip_pretrained
    python -m muti_control.networks.pipnet.export weights=... onnx=true

Writes NAME/pipnet.pth (a bare state dict under the release's key names, fp32) and NAME/meanface.txt below ``out``.
With ``onnx=true`` also NAME/pipnet.onnx: picture (B, 3, S, S) in [0, 1] -> points (B, N, 2) as fractions and confidence
(B, N); a network with biometrics has two more inputs, their encoding (B, A) and presence (B,). That needs two packages:
python -m pip install onnx onnxscript
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.files import replacing
from data.program import run_program
from muti_control.networks.pipnet.meanface import write_meanface
from muti_control.networks.pipnet.network import NUM_ATTRIBUTES
from muti_control.networks.pipnet.reader import MEANFACE, LandmarkReader
from muti_control.networks.pipnet.readout import read_points
from settings.base import Settings
from settings.messages import ConfigError

PRETRAINED = Path(__file__).resolve().parent.parent.parent / "pip_pretrained"


class ExportConfig(Settings):
    """What is exported, and where to."""

    weights: str
    """File of a landmark network."""
    out: str | None = None
    """Folder; null takes muti_control/pip_pretrained."""
    name: str | None = None
    """Folder in it; null takes the name of the file."""
    onnx: bool = False
    """Write pipnet.onnx too."""


def export_release(reader: LandmarkReader, folder: Path) -> None:
    """Write ``pipnet.pth`` and ``meanface.txt``, as the public code reads them.

    What biometrics add has no place there: without them the network gives the same points in both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().cpu().clone()
        for name, value in reader.net.state_dict().items()
        if not name.startswith("biometrics.")
    }
    with replacing(folder / "pipnet.pth") as temporary:
        torch.save(state, temporary)
    write_meanface(folder / MEANFACE, reader.mean)


class _Points(nn.Module):
    """The network with its read-out, as one graph."""

    def __init__(self, reader: LandmarkReader) -> None:
        super().__init__()
        self.net = reader.net
        self.register_buffer("reverse", reader.reverse)

    def forward(
        self, picture: Tensor, attributes: Tensor | None = None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(self.reverse, Tensor)
        return read_points(self.net(picture, attributes, present), self.reverse)


def export_onnx(reader: LandmarkReader, path: Path) -> None:
    """Write the network and its read-out as one ONNX graph for any number of pictures of the network's size.

    Raises:
        ConfigError: the packages for it are not installed.
    """
    size, batch = reader.net.cfg.image_size, 2
    inputs: list[Tensor] = [torch.rand(batch, 3, size, size)]
    names = ["picture"]
    if reader.takes_biometrics:
        inputs += [
            torch.zeros(batch, NUM_ATTRIBUTES + len(reader.net.cfg.ethnicities or ())),
            torch.ones(batch, dtype=torch.bool),
        ]
        names += ["attributes", "present"]
    dynamic = torch.export.Dim("batch", min=1, max=4096)
    try:
        with replacing(path) as temporary:
            torch.onnx.export(
                _Points(reader).eval(),
                tuple(inputs),
                str(temporary),
                input_names=names,
                output_names=["points", "confidence"],
                dynamic_shapes=tuple({0: dynamic} for _ in inputs),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise ConfigError(f"onnx: {error}; python -m pip install onnx onnxscript") from error


def export(config: ExportConfig) -> None:
    """Write the files that ``config`` asks for, and print their names. Raises: ValueError, OSError."""
    if not config.weights:
        raise ConfigError("weights: not given; expected the file of a landmark network")
    reader = LandmarkReader.load(config.weights)
    folder = Path(config.out or PRETRAINED) / (config.name or Path(config.weights).stem)
    export_release(reader, folder)
    if config.onnx:
        export_onnx(reader, folder / "pipnet.onnx")
    size = reader.net.cfg.image_size
    print(f"the network is for pictures of {size} x {size} px; its .pth does not say so")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    print(f"written: {', '.join(map(str, files))}")


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit code: 0, or 2 with one message on stderr."""
    return run_program("export", __doc__, ExportConfig, export, arguments or ["--help"], paths="")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
