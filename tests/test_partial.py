"""Skulls with bone missing: what goes, that nothing else does, and the augmentation's own draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.partial import REGIONS, PartialError, main, missing_bone, remove_bone
from muti_control.conditions.config import PartialSkullConfig
from muti_control.conditions.partial import with_missing_bone
from muti_control.training.seeded_batches import generator


def skull(size: int = 128, top: int = 20, chin: int = 110, neck: bool = True) -> np.ndarray:
    """An ellipse on black, with a neck below it: (size, size, 3) float32."""
    y, x = np.mgrid[:size, :size]
    middle, half = (top + chin) / 2, (chin - top) / 2
    drawn = ((y - middle) / half) ** 2 + ((x - 64) / (0.75 * half)) ** 2 <= 1
    if neck:
        drawn |= (np.abs(x - 64) < 8) & (y >= chin - 3) & (y < chin + 12)
    return np.repeat((0.3 + 0.4 * drawn * (x / size))[..., None] * drawn[..., None], 3, axis=2).astype(
        np.float32
    )


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_goes_black_and_nothing_else_changes(region: str) -> None:
    picture = skull()
    drawn = picture.max(2) > 0
    shares = []
    for seed in range(20):
        partial = remove_bone(picture, region, seed)
        gone = (partial.max(2) == 0) & drawn
        np.testing.assert_array_equal(partial[~gone], picture[~gone])
        shares.append(gone.sum() / drawn.sum())
        y, x = np.nonzero(gone)
        rest_y, rest_x = np.nonzero(drawn & ~gone)
        order = {
            "mandible": y.mean() > rest_y.mean() + 30,
            "vault": y.mean() < rest_y.mean() - 20,
            "left": x.mean() > rest_x.mean() + 15,  # the person's left
            "right": x.mean() < rest_x.mean() - 15,
        }
        assert order[region]
    low, high = {"mandible": (0.05, 0.35), "vault": (0.02, 0.5)}.get(region, (0.3, 0.7))
    assert low < min(shares) and max(shares) < high
    assert len({round(share, 4) for share in shares}) > 10  # another seed, another edge


@pytest.mark.parametrize("region", REGIONS)
def test_the_cut_does_not_tell_what_it_hides(region: str) -> None:
    drawn = skull().max(2) > 0
    noise = np.random.default_rng(0).random(drawn.shape) > 0.5
    cuts = set()
    for seed in range(20):
        away = missing_bone(drawn, region, seed)
        cuts.add(away.tobytes())
        for other in (
            drawn | away,
            drawn & ~away,
            np.where(away, noise, drawn),
        ):  # all bone there, none, some
            np.testing.assert_array_equal(missing_bone(other, region, seed), away)
    assert len(cuts) == 20


def test_the_mandibles_cut_has_a_height_of_its_own() -> None:
    drawn = skull().max(2) > 0
    heights = [missing_bone(drawn, "mandible", seed)[:, 64].argmax() for seed in range(40)]
    assert np.std(heights) >= 1.5  # px of 90


def test_the_augmentation_has_its_own_share_and_draw() -> None:
    skulls = torch.from_numpy(skull()).permute(2, 0, 1).expand(100, -1, -1, -1)

    def augmented(share: float) -> torch.Tensor:
        cfg = PartialSkullConfig(share=share, regions=["left", "mandible"])
        return with_missing_bone(skulls, cfg, generator(0, 0, 0, "partial"))

    assert augmented(0.0) is skulls
    some = augmented(0.3)
    changed = (some != skulls).flatten(1).any(1)
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.12)
    assert torch.equal(some, augmented(0.3))
    everything = augmented(1.0)
    assert torch.equal(everything[changed], some[changed])  # the share decides who, not how
    few = torch.zeros(4, 3, 64, 64)
    few[:2, :, 30:37] = few[2:, :, :, 30:37] = 1.0  # seven rows, or columns, are no skull
    cfg = PartialSkullConfig(share=1.0)
    assert torch.equal(with_missing_bone(few, cfg, generator(0, 0, 0, "partial")), few)


def test_the_command_writes_skulls_and_tells_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray((skull(256, 40, 220) * 255).astype(np.uint8)).save(source)
    assert main([str(source), str(out), "missing=mandible", "seed=4"]) == 0
    written = np.asarray(Image.open(out / "a.png"))
    wanted = remove_bone(np.asarray(Image.open(source)).astype(np.float32) / 255, "mandible", 4)
    np.testing.assert_array_equal(written, (wanted * 255).round().astype(np.uint8))
    Image.new("L", (256, 256)).save(tmp_path / "black.png")
    assert main([str(tmp_path / "black.png"), str(tmp_path / "b"), "missing=vault"]) == 2
    assert main([str(source), str(out), "missing=mandible"]) == 2  # it is there already
    assert not (tmp_path / "b").exists()
    with pytest.raises(PartialError):
        missing_bone(np.ones((64, 64), bool), "nose", 0)
