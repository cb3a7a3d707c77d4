"""The CLIP text encoder of Stable Diffusion 1.5, built offline.

The vocabulary is the one bundled with open_clip and the network is built from a config, so nothing
contacts a hub; the weights come from the checkpoint. Both libraries take seconds to import and are
therefore imported on first use, so that a wrong command line is answered at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config import TextConfig

BOS_TOKEN = 49406
EOS_TOKEN = 49407


@lru_cache(maxsize=1)
def _bpe() -> Any:
    """open_clip's byte-pair tokenizer, read once from its bundled vocabulary (about 0.1 s).

    Its module is loaded by itself: the package would import its models, timm and torchvision first, for seconds.
    """
    package = find_spec("open_clip")
    assert package is not None and package.origin is not None, "open_clip_torch is a runtime dependency"
    spec = spec_from_file_location("open_clip.tokenizer", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP's tokens with their ids, under their published names, and the byte pairs in the order of merging."""
    bpe = _bpe()
    special = {BOS_TOKEN: "<|startoftext|>", EOS_TOKEN: "<|endoftext|>"}  # open_clip calls them otherwise
    tokens = {special.get(number, token): number for token, number in bpe.encoder.items()}
    return tokens, sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.__getitem__)


def tokenize(prompts: Sequence[str], max_length: int = 77) -> Tensor:
    """Return token ids as Stable Diffusion 1.5 expects them.

    A row is the begin token, the prompt's tokens, the end token, and the end token again up to
    `max_length`: SD1.5 pads with 49407 and attends to every position, where open_clip would pad with 0.
    A prompt that is too long loses its tail (the end token stays) with a `UserWarning`.

    Args:
        prompts: B texts; an empty one is the unconditional prompt.
        max_length: tokens per row, at least 2.

    Returns:
        (B, max_length) int64.

    Raises:
        ValueError: `prompts` is a bare string, holds something else than text, or `max_length` < 2.
    """
    if isinstance(prompts, str):
        raise ValueError(
            f"tokenize expects a list of prompts, got the single string {prompts!r}; write [prompt]"
        )
    if max_length < 2:
        raise ValueError(f"max_length must leave room for the begin and end tokens (>= 2), got {max_length}")
    rows = torch.full((len(prompts), max_length), EOS_TOKEN, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt must be text, got {type(prompt).__name__}: {prompt!r}")
        ids = _bpe().encode(prompt)
        if len(ids) > max_length - 2:
            lost = _bpe().decode(ids[max_length - 2 :]).strip()
            warnings.warn(
                f"prompt of {len(ids)} tokens cut to {max_length - 2}; not seen by the model: {lost!r}",
                UserWarning,
                stacklevel=2,
            )
            ids = ids[: max_length - 2]
        row[0] = BOS_TOKEN
        row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.long)
    return rows


class _TextTransformer(nn.Module):
    """Holder that gives the CLIP parameters their checkpoint names, `text_model.*`.

    transformers before version 5 nests the network below `CLIPTextModel.text_model`; since then
    `CLIPTextModel` is that network itself. Either way it ends up under `text_model` here.
    """

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel

        model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=cfg.vocab_size,
                hidden_size=cfg.width,
                intermediate_size=cfg.intermediate,
                num_hidden_layers=cfg.layers,
                num_attention_heads=cfg.heads,
                max_position_embeddings=cfg.max_length,
                hidden_act="quick_gelu",
                bos_token_id=cfg.vocab_size - 2,
                eos_token_id=cfg.vocab_size - 1,
                pad_token_id=cfg.vocab_size - 1,
            )
        )
        self.text_model = getattr(model, "text_model", model)
        # On the CPU even under `torch.device("meta")`, and never saved: checkpoints need not hold it.
        ids = torch.arange(cfg.max_length, device="cpu")[None]
        self.text_model.embeddings.register_buffer("position_ids", ids, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, T)
        return self.text_model(input_ids=tokens, position_ids=positions).last_hidden_state  # (B, T, C)


class FrozenCLIPEmbedder(nn.Module):
    """Prompt to cross-attention context; parameters are named `transformer.text_model.*`.

    The name is the field's. Nothing is frozen here: which parts train is decided by the training stage.
    """

    def __init__(self, cfg: TextConfig) -> None:
        """Build with fresh weights.

        Raises:
            ValueError: a size is not positive or `heads` does not divide `width`.
        """
        super().__init__()
        self.cfg = cfg
        self.transformer = _TextTransformer(cfg)

    def forward(self, tokens: Tensor) -> Tensor:
        """Last hidden state after the final layer norm, all positions attended to (causally).

        Args:
            tokens: (B, T) int64, T <= `max_length`, as `tokenize` returns them.

        Returns:
            (B, T, width) in the parameters' dtype.
        """
        return self.transformer(tokens)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Texts to context, (B, max_length, width), on the parameters' device."""
        device = self.transformer.text_model.final_layer_norm.weight.device
        return self(tokenize(prompts, self.cfg.max_length).to(device))
