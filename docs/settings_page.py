"""Write docs/settings.md, the table of all settings: ``python -m docs.settings_page``."""

from __future__ import annotations

from pathlib import Path

from data.check.config import CheckConfig
from data.cohort.config import CohortConfig
from data.ct.config import CtConfig
from data.split import SplitConfig
from muti_control.evaluation.protocol.config import EvaluateConfig
from muti_control.sampling.config import SampleConfig
from muti_control.training.config import ExperimentConfig
from settings.base import Settings
from settings.help import keys_of
from settings.messages import dotted
from settings.reading import MISSING, values_of

PAGE = Path(__file__).with_name("settings.md")
PROGRAMS: dict[str, type[Settings]] = {
    "train.py": ExperimentConfig,
    "sample.py": SampleConfig,
    "evaluate.py": EvaluateConfig,
    "python -m data.split": SplitConfig,
    "python -m data.check": CheckConfig,
    "python -m data.ct": CtConfig,
    "python -m data.cohort": CohortConfig,
}
ABOVE = """# Settings

Every key of the large programs, with its default. `python -m docs.settings_page` writes this page from the code.

`--help all` prints the same for your config. A config or the weights may say something else than the default.
"""


def page() -> str:
    """Return the page."""
    parts = [ABOVE]
    for program, schema in PROGRAMS.items():
        parts.append(f"\n## {program.removeprefix('python -m ')}\n")
        group: tuple[str, ...] | None = None
        for key in keys_of(schema, values_of(schema, [])):
            if key.path[:-1] != group:
                group = key.path[:-1]
                heading = f"\n### {dotted(group)} ({program.split()[-1]})\n" if group else ""
                parts.append(f"{heading}\n| key | default | meaning |\n|---|---|---|\n")
            quoted = f'"{key.value}"' if " " in key.value and key.value[0] not in "[{'" else key.value
            value = "required" if key.value == MISSING else f"`{quoted}`"
            cells = (f"`{dotted(key.path)}`", value, key.comment)
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
