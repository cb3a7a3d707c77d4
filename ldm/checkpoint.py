"""Checkpoint files: reading (never executing) them, writing them whole or not at all, loading them strictly.

Keys are those of the public Stable Diffusion 1.5 and ControlNet checkpoints. Two containers are read
and written: safetensors, and PyTorch's pickled `.ckpt` / `.pth` with the weights under "state_dict".
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.containers import SUFFIXES, container, read_pickle, read_safetensors, utf8_path
from ldm.containers import CheckpointError as CheckpointError

SCHEDULE_BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
# Keys that Stable Diffusion files may hold or lack without meaning anything.
SD_OPTIONAL = (
    r"(^|\.)position_ids$",
    r"^model_ema\.",
    r"^logvar$",
    r"^cond_stage_model\.(transformer\.)?(text_model\.)?(logit_scale|text_projection)(\.weight)?$",
    r"^(" + "|".join(SCHEDULE_BUFFERS) + r")$",
)

_WRAPPERS = ("module.", "_orig_mod.", "state_dict.", "model.")
_PARTS = (*_WRAPPERS, "diffusion_model.", "first_stage_model.", "cond_stage_model.", "control_model.")
_OTHER_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^diffusion_model\.", "model.diffusion_model."),
        (r"^(cond_stage_model\.transformer\.)(?=embeddings\.|encoder\.|final_layer_norm\.|text_projection\.)",
         r"\1text_model."),
        (r"^(first_stage_model\..*attn_1\.)(?:to_([qkv])|to_out\.0)\.", lambda m: f"{m[1]}{m[2] or 'proj_out'}."),
        (r"^(first_stage_model\..*attn_1\.)group_norm\.", r"\1norm."),
    )
]  # fmt: skip
_CONVOLUTION = re.compile(
    r"^first_stage_model\..*attn_1\.(q|k|v|proj_out)\.weight$"
    r"|^(model\.diffusion_model|control_model)\..*\.\d+\.proj_(in|out)\.weight$"
)

DAMAGED = "Use the checkpoint before it, or copy the file again."
_FITTING = "Use the config this checkpoint was made with, or the checkpoint this config was made for."
_DISK_MARGIN = 16 << 20  # bytes kept free beyond the file itself


# --- reading ---------------------------------------------------------------------------------------------


def read_state_dict(path: str | Path, mmap: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a checkpoint. The container is recognised by its content.

    Nothing in the file is ever executed: pickles go through PyTorch's restricted unpickler, where the few
    harmless names of Lightning's checkpoints stand for objects that do nothing. Text encoder keys
    without the `text_model.` level get it back, and those of a control network its `control_model.`.

    Args:
        path: safetensors, or a PyTorch pickle (a bare state dict or one under "state_dict").
        mmap: map the file instead of reading it, so that tensors cost memory only once touched.

    Returns:
        Tensors by key, on the CPU; metadata as strings (a pickle's `global_step` becomes "step").

    Raises:
        CheckpointError: no such file, not a checkpoint, cut short, or a pickle that wants code to run.
    """
    path = Path(path)
    kind = container(path)
    state, metadata = read_safetensors(path, mmap) if kind == "safetensors" else read_pickle(path, kind, mmap)
    if not state:
        raise CheckpointError(f"{path} holds no tensors; expected a state dict of weights.")
    return _canonical(state), metadata


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names, and in the shapes, of the files of 2023.

    Trainers put a name in front of all keys. Recent transformers versions drop the text encoder's `text_model.` level,
    some public ControlNet files have no `control_model.` in front, and some UNets no `model.`. Files that came back
    from diffusers hold 1x1 convolutions of attention as matrices, and those of the autoencoder under its names.
    """
    while (
        front := next((one for one in _WRAPPERS if all(key.startswith(one) for key in state)), "")
    ) and any(key.startswith(tuple(front + part for part in _PARTS)) for key in state):
        state = {key.removeprefix(front): value for key, value in state.items()}
    bare = "zero_convs.0.0.weight" in state and "input_hint_block.0.weight" in state
    canonical = {}
    for key, value in state.items():
        for pattern, name in _OTHER_NAMES:
            key = pattern.sub(name, key)
        is_matrix = value.ndim == 2 and _CONVOLUTION.search(key) is not None
        canonical["control_model." * bare + key] = value[:, :, None, None] if is_matrix else value
    return canonical


# --- writing ---------------------------------------------------------------------------------------------


def write_state_dict(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a checkpoint under a temporary name beside the target, then rename it.

    A reader sees the old file or the whole new one, whatever interrupts the writing. Tensors may be views,
    on any device, or share memory: each is written on its own.

    Args:
        path: `.safetensors`, or `.ckpt` / `.pth` / `.pt` for {"state_dict": ..., "metadata": ...}.
        state: tensors by key.
        metadata: strings by name.

    Raises:
        CheckpointError: another suffix, a missing folder, too little disk space, or a failed write.
    """
    path = Path(path)
    check_writable(path, sum(value.numel() * value.element_size() for value in state.values()))
    # The libraries take UTF-8 alone; names of files may be other bytes.
    text = {
        str(key): str(value).encode("utf-8", "backslashreplace").decode() for key, value in metadata.items()
    }
    name = path.name.encode("utf-8", "replace").decode()
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        with utf8_path(temporary) as usable:
            if path.suffix.lower() == ".safetensors":
                usable.touch()
                mode = temporary.stat().st_mode  # the usual permissions; the library gives its file others
                save_file(_separate(state), usable, metadata=text)
                temporary.chmod(mode)
            else:
                torch.save({"state_dict": _separate(state), "metadata": text}, usable)
        _flush(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} could not be written ({reason}); nothing was left there: is the disk full, or the folder "
            "not yours?"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_writable(path: str | Path, num_bytes: int = 0) -> None:
    """Raise the error that `write_state_dict` would raise for this target.

    Args:
        path: the file to write. num_bytes: size of the tensors.

    Raises:
        CheckpointError: unknown suffix, a folder in its place, no such parent folder, one that cannot be written
            to, or a disk too full.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: a checkpoint's name must end in one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a file name such as {path / 'model.safetensors'}.")
    if not path.parent.is_dir():
        raise CheckpointError(
            f"{path.parent} is not an existing folder; create it first (mkdir -p {path.parent})."
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise CheckpointError(
            f"{path.parent}: no file can be made there ({error.strerror or error}); "
            "write elsewhere, or mend the folder's permissions."
        ) from error
    if num_bytes and num_bytes + _DISK_MARGIN > free:
        raise CheckpointError(
            f"{path} needs {num_bytes / 2**20:.0f} MiB, but {path.parent} has {free / 2**20:.0f} MiB free; "
            "make room there or write elsewhere."
        )


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers on the CPU, each tensor in memory of its own and of exactly its size.

    safetensors refuses tensors that share memory, and a pickled view would drag its whole storage (a mapped file, say)
    along. Only what shares memory or is not contiguous is copied.
    """
    separate, places = {}, set()
    for key, value in state.items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel() and flat.data_ptr() in places:
            flat = flat.clone()
        places.add(flat.data_ptr())
        own = torch.from_numpy(flat.view(torch.uint8).numpy()).view(value.dtype) if flat.numel() else flat
        separate[key] = own.reshape(value.shape)
    return separate


def _flush(path: Path) -> None:
    """Force the file to disk, so that the rename cannot come before its content."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


# --- loading into a module -------------------------------------------------------------------------------


def key_table(kinds: Mapping[str, list[str]], num_shown: int = 3) -> str:
    """Return aligned text, a line for each kind of key: its name, the number of keys, the first `num_shown` of them."""
    width = max(map(len, kinds), default=0)
    lines = (f"{kind:<{width}}  {len(keys):>5}  {_first(keys, num_shown)}" for kind, keys in kinds.items())
    return "\n".join(line.rstrip() for line in lines)


def match_keys(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    prefix: str = "",
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> None:
    """Raise CheckpointError if `load_strict` would; `module` may be on the meta device."""
    own = module.state_dict()
    weights = _without_prefix(state, prefix)
    may_lack = [re.compile(pattern) for pattern in allow_missing]
    may_add = [re.compile(pattern) for pattern in allow_unexpected]

    kinds = ("missing", "unexpected", "another shape", "another type", "not finite")
    problems: dict[str, list[str]] = {kind: [] for kind in kinds}
    for key, value in own.items():
        if key not in weights:
            if not any(pattern.search(prefix + key) for pattern in may_lack):
                problems["missing"].append(prefix + key)
        elif weights[key].shape != value.shape:
            shapes = f"{list(weights[key].shape)} in the file, {list(value.shape)} in the model"
            problems["another shape"].append(f"{prefix + key} ({shapes})")
        elif weights[key].is_floating_point() != value.is_floating_point():  # quantised weights, say
            problems["another type"].append(f"{prefix + key} ({weights[key].dtype} in the file)")
        elif not is_finite(weights[key]):
            problems["not finite"].append(prefix + key)
    for key in sorted(weights.keys() - own.keys()):
        if not any(pattern.search(prefix + key) for pattern in may_add):
            problems["unexpected"].append(prefix + key)
    differences = [f"{len(keys)} {kind} ({_first(keys, 5)})" for kind, keys in problems.items() if keys]
    if differences:
        what, remedy = f"the weights do not fit {type(module).__name__}", _FITTING
        if problems["not finite"]:
            what, remedy = "the weights are damaged", DAMAGED
        raise CheckpointError(f"{what}: {'; '.join(differences)}. {remedy}")


def is_finite(value: Tensor) -> bool:
    """Return whether all numbers are finite; a tensor without numbers (on the meta device) counts as such."""
    if not value.is_floating_point() or value.is_meta or not value.numel():
        return True
    least, most = (
        value.float() if value.element_size() < 2 else value
    ).aminmax()  # NaN is both; takes no memory
    return bool(least.isfinite() & most.isfinite())


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _first(keys: list[str], num: int) -> str:
    return ", ".join(keys[:num]) + (", ..." if len(keys) > num else "")


def check_size(key: str, values: Iterable[Tensor | torch.Size]) -> None:
    """Raise CheckpointError if new weights, of a part called ``key`` in the architecture, would take 1 GiB or more."""
    size = sum(4 * value.numel() for value in values)
    if size >= 1 << 30:
        raise CheckpointError(
            f"config {key}: asks for new weights of {size / 2**30:.3g} GiB, expected less than 1"
        )


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    prefix: str = "",
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    assign: bool = False,
) -> None:
    """Load `state` into `module`; every difference that is not allowed by name is an error.

    Args:
        module: filled in place; unchanged when an error is raised.
        state: tensors by key; dtypes are converted to the module's.
        prefix: use only keys that start with it, and strip it ("control_model." loads that part).
        allow_missing: regular expressions, searched in the full key, of keys the file may lack.
        allow_unexpected: the same for keys the module does not have.
        assign: let the module's parameters become the given tensors (for one built on the meta device).

    Raises:
        CheckpointError: keys missing, unexpected, of another shape, integers where fractions belong (or the other way
            round), or numbers that are not finite; the first of each are listed.
    """
    match_keys(module, state, prefix=prefix, allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    weights = _without_prefix(state, prefix)
    merged = {key: weights.get(key, value) for key, value in module.state_dict().items()}
    module.load_state_dict(merged, strict=True, assign=assign)


# --- provenance ------------------------------------------------------------------------------------------


def git_revision() -> str:
    """Return the commit of this checkout, with "-dirty" if files differ from it; "unknown" outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
