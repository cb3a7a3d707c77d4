"""The text encoder: token ids as SD1.5 wants them, embeddings as CLIP computes them, checkpoint names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm.config import TextConfig
from ldm.text import BOS_TOKEN, EOS_TOKEN, FrozenCLIPEmbedder, tokenize

# Ids of CLIP's published vocabulary: "a photo of a cat" is the example every CLIP user knows.
CAT = [49406, 320, 1125, 539, 320, 2368]
STANDARD = "3D face scan,Asian male,age level 3,normal face."
STANDARD_IDS = [49406, 274, 323, 1710, 11261, 267, 7128, 2801, 267, 805, 2931, 274, 267, 5967, 1710, 269]
LITERAL = torch.tensor([ids + [49407] * (77 - len(ids)) for ids in (STANDARD_IDS, CAT, [49406])])

TINY = TextConfig(width=32, layers=2, heads=4, intermediate=64)


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIPEmbedder:
    torch.manual_seed(0)
    model = FrozenCLIPEmbedder(TINY)
    for parameter in model.parameters():  # CLIP's own initialisation leaves biases 0 and norms 1
        parameter.data.normal_(0, 0.3)
    return model.eval()


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_standard_prompt_has_its_literal_ids() -> None:
    tokens = tokenize([STANDARD, "a photo of a cat", ""])
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, LITERAL)


def test_long_prompt_is_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"prompt of 80 tokens cut to 75.*'face face face face face'"):
        tokens = tokenize(["face " * 80])
    assert tokens.tolist() == [[BOS_TOKEN] + [1710] * 75 + [EOS_TOKEN]]
    with pytest.warns(UserWarning, match="cut to 3"):
        assert tokenize(["a photo of a cat"], max_length=5).tolist() == [[49406, 320, 1125, 539, 49407]]


def test_a_prompt_that_just_fits_is_kept_silently(recwarn: pytest.WarningsRecorder) -> None:
    assert tokenize(["face " * 75])[0, -2:].tolist() == [1710, EOS_TOKEN]
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize(("prompts", "message"), [("a face", "list of prompts"), ([None], "must be text")])
def test_wrong_prompts_are_refused(prompts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize(prompts)


def plain_clip(state: dict[str, torch.Tensor], tokens: torch.Tensor, cfg: TextConfig) -> torch.Tensor:
    """CLIP's text transformer in bare functions: pre-norm blocks, causal, quick GELU, final norm."""
    p = {key.removeprefix("transformer.text_model."): value for key, value in state.items()}
    x = (
        F.embedding(tokens, p["embeddings.token_embedding.weight"])
        + p["embeddings.position_embedding.weight"]
    )
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    for i in range(cfg.layers):
        block = f"encoder.layers.{i}"
        h = norm(x, f"{block}.layer_norm1")
        q, k, v = (
            linear(h, f"{block}.self_attn.{n}_proj").unflatten(-1, (cfg.heads, -1)).transpose(1, 2)
            for n in "qkv"
        )
        attention = (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), f"{block}.self_attn.out_proj")
        h = linear(norm(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1")
        x = x + linear(h * torch.sigmoid(1.702 * h), f"{block}.mlp.fc2")
    return norm(x, "final_layer_norm")


def test_embeddings_match_the_plain_formula(tiny: FrozenCLIPEmbedder) -> None:
    with torch.no_grad():
        ours = tiny(LITERAL)
        theirs = plain_clip(tiny.state_dict(), LITERAL, TINY)
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 1e-4


def test_checkpoint_names_and_nothing_else(tiny: FrozenCLIPEmbedder) -> None:
    keys = list(tiny.state_dict())
    assert all(key.startswith("transformer.text_model.") for key in keys)
    assert not [key for key in keys if "position_ids" in key]
    assert keys == [name for name, _ in tiny.named_parameters()]
