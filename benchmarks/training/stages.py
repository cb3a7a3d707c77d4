"""What the stages before and after control training take at SD1.5's size, on random weights and the shipped pairs.

    python -m benchmarks.training.stages                                       on the CPU or GPU at hand
    python -m benchmarks.training.stages device=cuda batch=16 reps=10 append=true

latents: faces read, encoded and kept, as every stage does it once. texts: prompts into embeddings, likewise.
guidance_decoder: a step of distilling the small decoder, with its optimizer. Each runs in a process of its own; a
first, untimed turn warms it up. What a step of control training takes: benchmarks.training.training; a face: benchmarks.sampling.speed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from benchmarks.results_file import append_section, machine, table
from benchmarks.training.training_steps import forget_peak, peak_bytes, random_weights
from cldm.controlled import SD15_CONFIG, ControlledLatentDiffusion, load_model_config
from cldm.record import check_creatable, write_json
from data.manifest import read_manifest
from data.paired import PairedDataset
from ldm.config import parse_command_line
from ldm.device import choose_device, prefers_bf16
from muti_control.training.config import ExperimentConfig, load_experiment
from muti_control.training.first_stage import FirstStage
from muti_control.training.latents import LatentPairs, face_moments
from muti_control.training.offload import park
from muti_control.training.stages.guidance_decoder import GuidanceDecoderStage

GIB = 2**30
ROOT = Path(__file__).resolve().parent.parent.parent
DECODER = ROOT / "configs" / "sd15" / "guidance_decoder.yaml"


@dataclass
class StagesConfig:
    """What is timed.

    model: YAML of the architecture. device: auto, cpu, cuda. size: px. batch: pictures a step.
    data: manifest of the pairs. stages: names of STAGES. reps: timed turns. threads: of torch on the CPU, 0 for its own
    choice. out: JSON file. append: add the table to benchmarks/RESULTS.md.
    """

    model: str = str(SD15_CONFIG)
    device: str = "auto"
    size: int = 256
    batch: int = 1
    data: str = "data/split_data/train.json"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    reps: int = 3
    threads: int = 0
    out: str = "benchmarks/results/stages.json"
    append: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if not self.stages or not set(self.stages) <= set(STAGES):
            raise ValueError(f"stages: got {self.stages}, expected some of {', '.join(STAGES)}")
        for name in ("size", "batch", "reps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.size % 64:
            raise ValueError(f"size: got {self.size}, expected a multiple of 64, such as 256")
        if self.threads < 0:
            raise ValueError(f"threads: got {self.threads}, expected 0 or more")


Turn = Callable[[Path], int]  # does the work once, in an empty folder; returns of how many pictures


def latents_turn(cfg: StagesConfig, model: ControlledLatentDiffusion, device: torch.device) -> Turn:
    """Every face of the list, with an empty cache."""
    first_stage = _first_stage(model, device)
    del model
    pairs = PairedDataset(read_manifest(Path(cfg.data)), size=cfg.size)

    def turn(folder: Path) -> int:
        return len(face_moments(first_stage, pairs, folder, device))

    return turn


def texts_turn(cfg: StagesConfig, model: ControlledLatentDiffusion, device: torch.device) -> Turn:
    """The prompts of the list, all at once."""
    pairs = PairedDataset(read_manifest(Path(cfg.data)), size=cfg.size)
    prompts = [pairs.prompt(i) for i in range(len(pairs))]
    for part in (model.model, model.control_model, model.first_stage_model):
        part.to("meta")

    @torch.no_grad()
    def turn(folder: Path) -> int:
        return len(model.encode_text(prompts).cpu())

    return turn


def guidance_decoder_turn(cfg: StagesConfig, model: ControlledLatentDiffusion, device: torch.device) -> Turn:
    """An optimizer step of ``configs/sd15/guidance_decoder.yaml``."""
    first_stage = _first_stage(model, device)
    del model
    experiment = load_experiment([str(DECODER), f"train.batch_size={cfg.batch}"])
    pairs = PairedDataset(read_manifest(Path(cfg.data))[: cfg.batch], size=cfg.size)
    with tempfile.TemporaryDirectory() as folder:
        moments = face_moments(first_stage, pairs, Path(folder), device)
        faces = LatentPairs(pairs, moments, with_skull=False)
        batch = default_collate([faces[i % len(faces)] for i in range(cfg.batch)])
    park(first_stage.first_stage_model, "encoder")
    stage = GuidanceDecoderStage.of(experiment, first_stage, faces, faces).to(device)
    batch["moments"] = batch["moments"].to(device)
    return _step(experiment, stage, batch, device)


def _first_stage(model: ControlledLatentDiffusion, device: torch.device) -> FirstStage:
    first_stage = FirstStage(model.cfg)
    first_stage.first_stage_model = model.first_stage_model
    return first_stage.requires_grad_(False).to(device)


def _step(
    cfg: ExperimentConfig, stage: GuidanceDecoderStage, batch: dict[str, Any], device: torch.device
) -> Turn:
    parameters = list(stage.net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=cfg.optim.lr, fused=True)
    half = prefers_bf16(device)

    def turn(folder: Path) -> int:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = stage.loss_of(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        stage.ema.update(stage.averaged_tensors())
        return len(batch["moments"])

    return turn


STAGES: dict[str, Callable[[StagesConfig, ControlledLatentDiffusion, torch.device], Turn]] = {
    "latents": latents_turn,
    "texts": texts_turn,
    "guidance_decoder": guidance_decoder_turn,
}


def timed(cfg: StagesConfig, name: str) -> dict[str, Any]:
    """Seconds of each turn (and the processor's own), pictures in one, peak in bytes, and the machine."""
    device = choose_device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    turn = STAGES[name](cfg, random_weights(cfg.model, device), device)
    forget_peak(device)
    seconds, cpu_seconds, num = [], [], 0
    for _ in range(1 + cfg.reps):
        with tempfile.TemporaryDirectory() as folder:
            began, cpu_began = time.perf_counter(), time.process_time()
            num = turn(Path(folder))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
    return {
        "stage": name,
        "pictures": num,
        "seconds": seconds[1:],
        "cpu_seconds": cpu_seconds[1:],
        "peak": peak_bytes(device),
        "machine": machine(device),
    }


def rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a stage: pictures in a turn, its median by the clock and the processor, pictures a second, peak."""
    lines = []
    for run in runs:
        middle, own = (statistics.median(run[clock]) for clock in ("seconds", "cpu_seconds"))
        lines.append(
            [
                run["stage"],
                str(run["pictures"]),
                f"{middle:.2f} s",
                f"{own:.2f} s",
                f"{run['pictures'] / middle:.3g}",
                f"{run['peak'] / GIB:.2f} GiB",
            ]
        )
    return lines


def main(argv: Sequence[str]) -> int:
    """Exit status: 0, or 2 for arguments that cannot be used."""
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__)
        return 0
    try:
        cfg = parse_command_line(StagesConfig, argv)
        cfg.validate()
        device = choose_device(cfg.device)
        load_model_config(cfg.model)
        read_manifest(Path(cfg.data))
        check_creatable(Path(cfg.out).parent)
    except (ValueError, OSError) as error:
        print(f"benchmarks.training.stages: {error}", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        runs = list(processes.map(timed, [cfg] * len(cfg.stages), cfg.stages))
    header = ["stage", "pictures a turn", "turn", "processor", "pictures/s", "peak memory"]
    text = table(header, rows(runs))
    print(f"{runs[0]['machine']}; {cfg.size} px\n\n{text}")
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(cfg.out), {"config": asdict(cfg), "runs": runs})
    if cfg.append:
        command = " ".join(["python -m benchmarks.training.stages", *argv])
        append_section("Stages at SD1.5's size", command, device, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
