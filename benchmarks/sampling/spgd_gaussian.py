"""Guidance against a posterior that is known in closed form: how far the samples' mean stays from it.

    python -m benchmarks.sampling.spgd_gaussian [samples=2048] [gradient=estimate] [scales=[0.05,0.1,0.2,0.5]] [append=true]

The case is that of tests/test_spgd.py: 8 numbers with a normal prior, three linear measurements, 50 stochastic DDIM
steps with the exact noise prediction. 0 is the posterior's mean, 1 the prior's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks.results_file import append_section, table
from benchmarks.sampling.gaussian_case import Gaussian
from cldm.spgd import MODES, SpgdConfig
from ldm.config import parse_command_line


@dataclass
class GaussianConfig:
    """What is drawn.

    samples: of every row. gradient: through the denoiser or the last estimate. scales: of guidance. clip: of a step's
    length, relative to the latent's norm. relative_to: latent or estimate, see SpgdConfig. append: add the table to
    benchmarks/RESULTS.md.
    """

    samples: int = 2048
    gradient: str = "estimate"
    scales: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.5])
    clip: float = 0.5
    relative_to: str = "latent"
    append: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field, its value and what is allowed."""
        if self.samples < 2:
            raise ValueError(f"samples: got {self.samples}, expected at least 2")
        if not self.scales:
            raise ValueError("scales: got none, expected some numbers")
        for scale in self.scales:
            replace(self.base, mode="spgd", scale=scale).validate()

    @property
    def base(self) -> SpgdConfig:
        """What all rows share; off."""
        return SpgdConfig("off", self.gradient, clip=self.clip, relative_to=self.relative_to)


def rows(cfg: GaussianConfig) -> list[tuple[str, list[float]]]:
    """(mode, errors by scale); unguided has one error for all scales."""
    case, base = Gaussian(), cfg.base
    found = [("off", [case.error(base, cfg.samples)] * len(cfg.scales))]
    for mode in MODES[1:]:
        errors = [case.error(replace(base, mode=mode, scale=scale), cfg.samples) for scale in cfg.scales]
        found.append((mode, errors))
    return found


def main(arguments: Sequence[str]) -> int:
    """Run, print the table, and return the exit code: 0, or 2 for what the user can mend."""
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    try:
        cfg = parse_command_line(GaussianConfig, arguments)
        cfg.validate()
    except ValueError as error:
        print(f"guidance_gaussian: {error}", file=sys.stderr)
        return 2
    header = ["guidance", *(f"scale {scale:g}" for scale in cfg.scales)]
    body = table(header, [[mode, *(f"{error:.2f}" for error in errors)] for mode, errors in rows(cfg)])
    print(body)
    if cfg.append:
        command = " ".join(["python -m benchmarks.sampling.spgd_gaussian", *arguments])
        append_section("Guidance against a posterior in closed form", command, torch.device("cpu"), body)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
