"""What every test runs under: one thread, a fixed seed, and no network."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from pytorch_lightning.utilities.seed import isolate_rng

import tool_add_control
import train
from cldm.controlled import ControlledLatentDiffusion, model_metadata
from ldm.checkpoint import write_state_dict
from ldm.config import AutoencoderConfig, ControlConfig, ModelConfig, TextConfig, UNetConfig
from settings.reading import to_yaml

LOOPBACK = ("127.", "localhost", "::1")
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-bf16", action="store_true", help="run as on a processor without bf16 instructions")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--no-bf16"):
        os.environ["ICCR_NO_BF16"] = "1"  # the programs that tests start inherit it


# A suite started in the background inherits an ignored Ctrl-C, and so would the programs whose Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The nets of the tests are tiny: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test that forgets its own generator still gives the same answer every time."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- for libraries that draw from the global generator


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Whatever reaches for a hub fails the test that made it do so."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(host).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to reach {address!r}: nothing here may use the network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def tiny_model_config() -> ModelConfig:
    """A whole model of well under a million weights (but for CLIP's vocabulary) for 64 px pictures."""
    return ModelConfig(
        image_size=64,
        unet=UNetConfig(
            model_channels=8,
            channel_mult=[1, 2],
            num_res_blocks=1,
            attention_levels=[1],
            num_heads=2,
            context_dim=16,
            norm_groups=4,
        ),
        first_stage=AutoencoderConfig(ch=8, ch_mult=[1, 1, 1, 1], num_res_blocks=1, norm_groups=4),
        cond_stage=TextConfig(width=16, layers=1, heads=2, intermediate=16),
        control=ControlConfig(hint_widths=[4, 4, 4, 4, 8, 8, 8]),
    )


@pytest.fixture
def tiny_config() -> ModelConfig:
    return tiny_model_config()


@pytest.fixture
def tiny_yaml(tiny_config: ModelConfig, tmp_path: Path) -> str:
    """The architecture of the tiny model as a file."""
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny_config), encoding="utf-8")
    return str(tmp_path / "tiny.yaml")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without zero layers, in which skull and prompt matter much; it recommends three steps."""
    torch.manual_seed(0)
    cfg = tiny_model_config()
    model = ControlledLatentDiffusion(cfg)
    for name, parameter in model.named_parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
        elif "attn2" in name:
            parameter.data.mul_(10)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    recommended = {"sampling": json.dumps({"steps": 3, "guidance_scale": 2.0, "control_scales": [1.0]})}
    write_state_dict(path, model.state_dict(), model_metadata(cfg) | recommended | {"step": "7"})
    return path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all workers of this session share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


PREDECESSORS = {"grain": "autoencoder", "base": "grain", "control": "base", "guidance_decoder": "autoencoder"}


@pytest.fixture(scope="session")
def trained(shared_folder: Path) -> Callable[[str], Path]:
    """Return ``trained(stage)``: the folder of a finished run of configs/debug/STAGE.yaml, four steps in fp32.

    The folder holds model.safetensors, checkpoints/ and the logs. Each run is made once per session, with those it
    starts from, and shared by all workers: copy what a test wants to change.
    """

    def run_of(stage: str) -> Path:
        run = shared_folder / f"debug_{stage}"
        with FileLock(shared_folder / f"{stage}.lock"):
            if not (run / "model.safetensors").is_file():
                arguments = [str(ROOT / f"configs/debug/{stage}.yaml"), f"out={shared_folder}"]
                arguments += [f"data.root={ROOT / 'data'}", "train.max_steps=4", "train.batch_size=2"]
                arguments += ["train.val_every=2", "train.save_every=2", "train.num_valid=2"]
                arguments += ["train.precision=fp32", "train.device=cpu"]
                if stage in PREDECESSORS:
                    init = run_of(PREDECESSORS[stage]) / "model.safetensors"
                    if stage == "control":
                        base, init = init, shared_folder / "control_ini.safetensors"
                        assert quietly(tool_add_control.main, [str(base), str(init)]) == 0
                    arguments.append(f"init={init}")
                assert quietly(train.main, arguments) == 0
        return run

    return run_of


def quietly(program: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a program without its output; the state of the random generators stays."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), isolate_rng(include_cuda=False):
        return program(arguments)


def write_pairs(root: Path, size: int = 64, **splits: int) -> Path:
    """A data folder of random pictures: write_pairs(root, train=6, valid=2, test=3) -> root."""
    rng = np.random.default_rng(0)
    for folder in ("pairedCS/skull", "pairedCS/craniofacial", "split_data"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, num in splits.items():
        lines = []
        for i in range(num):
            name = f"{split}_{i}.png"
            for folder in ("skull", "craniofacial"):
                picture = np.kron(rng.integers(0, 256, (size // 8, size // 8)), np.ones((8, 8)))
                Image.fromarray(picture.astype(np.uint8)).save(root / "pairedCS" / folder / name)
            fields = {"source": name, "target": name, "subject": f"{split}{i}", "ethnicity": "Asian"}
            fields |= {"gender": "MF"[i % 2], "age": 20 + 30 * (i // 2 % 2), "body_mass": "4"}
            lines.append(json.dumps(fields))
        (root / "split_data" / f"{split}.json").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def make_pairs(tmp_path: Path) -> Callable[..., Path]:
    """``write_pairs`` into the test's own folder: make_pairs(train=6, valid=2, test=3, size=64) -> its root."""
    return lambda size=64, **splits: write_pairs(tmp_path, size, **splits)


TINY_RUN = """
stage: autoencoder
name: tiny
out: {root}/runs
data: {{root: {root}}}
train: {{max_steps: {steps}, batch_size: 2, val_every: 10000, save_every: 3, num_valid: 3, device: cpu}}
model:
  image_size: 64
  unet: {{model_channels: 8, channel_mult: [1], num_res_blocks: 1, attention_levels: [], context_dim: 16,
    norm_groups: 4}}
  first_stage: {{ch: 8, ch_mult: [1, 1, 1, 1], num_res_blocks: 1, norm_groups: 4}}
  cond_stage: {{width: 16, layers: 1, heads: 2, intermediate: 16}}
"""


@pytest.fixture
def make_tiny_run(tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments for train.py of an autoencoder of a few weights: make_tiny_run(steps, *settings)."""
    root = write_pairs(tmp_path / "pairs", train=4, valid=3)

    def make(steps: int, *settings: str) -> list[str]:
        config = tmp_path / "config.yaml"
        config.write_text(TINY_RUN.format(root=root, steps=steps))
        return [str(config), *settings]

    return make
