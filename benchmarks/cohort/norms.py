"""Published measurements of real heads, skulls and tissue depths that the synthetic cohort is compared with.

Every figure was read in the source named here, or computed from the raw table named here. What could not be read
(Stephan's pooled tissue-depth tables, Farkas' norms) is not quoted.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = {
    "Howells": (
        "W. W. Howells' craniometric data (Cranial Variation in Man, 1973; Skull Shapes and the Map, "
        "1989), South Japanese, 50 men and 41 women, computed from the raw table as kept in "
        "github.com/geanes/bioanth (howell.csv)"
    ),
    "Du": (
        "Head-and-face survey of 2,026 male and 974 female Chinese workers of 2006 (L. Du et al., "
        "Ann. Occup. Hyg. 2008); the means are those of the abstract of the Chinese report of the "
        "same survey, which gives no SD"
    ),
    "HK": (
        "Hong Kong adults, City University of Hong Kong, Online Anthropometry, chapter 2, dimension "
        "26 (percentiles 5, 50, 95 and SD; the women's row there is misprinted, so that of British "
        "women, 19-65 years, stands here)"
    ),
    "Rhine": (
        "J. S. Rhine 1983, Southwestern Native American women of normal build, via K. Taylor 2001, as "
        "Table 2 of G. Rangel-de Lazaro et al., Virtual Archaeology Review 17(34), 2026, "
        "doi:10.4995/var.2024.24796"
    ),
}


@dataclass(frozen=True)
class Norm:
    """Mean, SD, 5th and 95th percentile in mm, None where the source does not say. ``source``: a key of SOURCES."""

    source: str
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.1f}"
        between = "" if self.low is None or self.high is None else f" [{self.low:.0f}, {self.high:.0f}]"
        return f"{self.mean:.1f}{spread}{between} {self.source}"


# (measure, sex) -> norm; the names are those of benchmarks.cohort.craniometry
SKULL: dict[tuple[str, str], Norm] = {
    ("cranial length g-op", "M"): Norm("Howells", 181.3, 5.7, 174, 190),
    ("cranial length g-op", "F"): Norm("Howells", 172.5, 5.5, 162, 179),
    ("cranial breadth eu-eu", "M"): Norm("Howells", 138.3, 4.6, 131, 146),
    ("cranial breadth eu-eu", "F"): Norm("Howells", 133.7, 4.1, 129, 140),
    ("bizygomatic zy-zy", "M"): Norm("Howells", 133.6, 3.9, 127, 141),
    ("bizygomatic zy-zy", "F"): Norm("Howells", 124.8, 4.4, 118, 131),
}
HEAD: dict[tuple[str, str], Norm] = {
    ("head length g-op", "M"): Norm("HK", 190, 8, 175, 205),
    ("head length g-op", "F"): Norm("HK", 180, 7, 165, 190),
    ("bizygomatic zy-zy", "M"): Norm("Du", 147.6),
    ("bizygomatic zy-zy", "F"): Norm("Du", 140.1),
    ("bigonial go-go", "M"): Norm("Du", 118.5),
    ("bigonial go-go", "F"): Norm("Du", 114.5),
    ("sellion-menton", "M"): Norm("Du", 117.0),
    ("sellion-menton", "F"): Norm("Du", 109.7),
}
# mm, women of normal build; the names are those of benchmarks.cohort.tissue_depth
DEPTHS: dict[str, Norm] = {
    name: Norm("Rhine", mm)
    for name, mm in {
        "glabella": 4.5,
        "nasion": 7.0,
        "rhinion": 2.5,
        "mid-philtrum": 10.0,
        "upper lip (prosthion)": 11.0,
        "lower lip (infradentale)": 12.25,
        "supramentale": 10.0,
        "pogonion": 13.0,
        "menton": 8.0,
        "frontal eminence": 4.0,
        "supraorbital": 8.5,
        "suborbital": 6.25,
        "inferior malar": 12.0,
        "lateral orbit": 11.5,
        "zygion": 7.0,
        "gonion": 10.5,
        "mid-masseter": 17.5,
        "supra-M2": 18.0,
        "sub-M2": 17.0,
    }.items()
}
