"""The containers of checkpoint files: safetensors, PyTorch's zip archive, and its older bare pickle.

The first bytes of a file say which one it is. Reading never executes anything in it.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt")
_NESTED = ("state_dict", "model_state_dict", "model", "module", "weights", "params_ema", "params", "ema")
"""Where the weights lie in the dictionaries of the usual trainers, the most likely first."""
_SIZED = re.compile(r"(builtins|__builtin__)\.bytearray|torch(\.\w+)*\.\w+Tensor")
_LEGACY_PICKLES = 4  # before the numbers: a mark, the version, the system, and the content


class CheckpointError(ValueError):
    """A checkpoint file that cannot be read, written or loaded; the message says what to do about it."""


class _Inert:
    """Stands in for a class or function named in a pickle: takes any arguments, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state


# What Lightning stored beside the tensors of the public Stable Diffusion files. None of it is needed.
_INERT_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Inert, name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.dtypes.Float32DType",
        "numpy.dtypes.Float64DType",
        "numpy.dtypes.Int64DType",
        "_codecs.encode",
    )
]


def container(path: Path) -> str:
    """Return "safetensors", "zip" or "legacy" (a pickle), from a file's first bytes. Raises: CheckpointError."""
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file" if path.exists() else "missing"
            here = f"; a relative path starts at {Path.cwd()}" if what == "missing" else ""
            raise CheckpointError(f"{path} is {what}, expected a checkpoint ({', '.join(SUFFIXES)}){here}.")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({error.strerror or error}).") from error
    if head[8:9] == b"{":  # before the pickles: the header's length, which stands first, may start like one
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80":
        return "legacy"
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`.")
    kind = f"a file starting with {head[:12]!r}" if head else "an empty file"
    raise CheckpointError(f"{path} is {kind}, expected a checkpoint. Download it again?")


def _damaged(path: Path, error: object) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or cut short ({error}): copy it again.")


def is_utf8(path: Path) -> bool:
    """Return whether a path is UTF-8 text, which libraries in C++ and Rust need."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Give the path, or where it is no UTF-8 a link to the file, or to its folder where there is no file yet."""
    if is_utf8(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"link{path.suffix}"
        if path.exists():
            link.symlink_to(path.absolute())
        else:
            link.symlink_to(path.absolute().parent)
            link /= path.name
        yield link


def read_safetensors(path: Path, mmap: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with utf8_path(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    if not mmap:
        state = {key: value.clone() for key, value in state.items()}
    return state, metadata


def load_pickle(path: str | Path, mmap: bool = True) -> Any:
    """Return the whole content of a PyTorch pickle, read without executing anything in it.

    Raises:
        CheckpointError: as `read_state_dict` does.
    """
    path = Path(path)
    kind = container(path)
    if kind == "safetensors":
        raise CheckpointError(f"{path} is a safetensors file; expected a PyTorch checkpoint.")
    return _load_pickle(path, kind, mmap)


def _load_pickle(path: Path, kind: str, mmap: bool) -> Any:
    import torch  # seconds, which a missing file does not have to wait for

    if kind == "zip":
        _check_archive(path)
    _check_calls(path, kind)
    try:
        with torch.serialization.safe_globals(_INERT_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols
            if mmap and kind == "zip" and is_utf8(path) and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:  # torch takes a path of that name for the other container
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise _refusal(path, error) from error


def read_pickle(path: Path, kind: str, mmap: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    import torch

    content = weights = _load_pickle(path, kind, mmap)
    where = ""
    state: dict[str, Tensor] = {}
    while not state:
        if not isinstance(weights, Mapping):
            what = f"{path}: its {where} is" if where else f"{path} holds"
            raise CheckpointError(f"{what} a {type(weights).__name__}; expected a dictionary of tensors.")
        where = next((name for name in _NESTED if name in weights), "")
        if where and not torch.is_tensor(weights[where]):
            weights = weights[where]
            continue
        tensors = {key: value for key, value in weights.items() if torch.is_tensor(value)}
        state = {key: value.detach() for key, value in tensors.items() if isinstance(key, str)}
        if not state:
            keys = ", ".join(str(key) for key in list(weights)[:8]) or "none"
            raise CheckpointError(
                f"{path} holds no tensors at its top level or under {', '.join(_NESTED)}; its keys are: {keys}."
            )
    odd = [
        key
        for key, value in state.items()
        if value.layout != torch.strided or value.is_quantized or value.is_meta
    ]
    if odd:
        raise CheckpointError(
            f"{path}: {odd[0]} is sparse, quantised or empty (meta); save the weights as plain tensors."
        )
    size, held = sum(value.numel() * value.element_size() for value in state.values()), path.stat().st_size
    if size > 2 * held + (1 << 30):
        raise CheckpointError(
            f"{path} has {held / 2**30:.3g} GiB, but its tensors claim {size / 2**30:.3g} GiB; save them as plain, "
            "contiguous tensors."
        )
    entry = content.get("metadata")
    metadata = {str(k): str(v) for k, v in entry.items()} if isinstance(entry, Mapping) else {}
    if isinstance(content.get("global_step"), int):
        metadata.setdefault("step", str(content["global_step"]))
    return state, metadata


def _check_calls(path: Path, kind: str) -> None:
    """Raise CheckpointError for a pickle that makes objects of a size it names: a few bytes would fill the memory.

    torch's restricted unpickler lets them pass.
    """
    try:
        with ExitStack() as stack:
            if kind == "zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                name = next(one for one in archive.namelist() if one.split("/")[1:] == ["data.pkl"])
                file: IO[bytes] = stack.enter_context(archive.open(name))
            else:
                file = stack.enter_context(path.open("rb"))
            for _ in range(1 if kind == "zip" else _LEGACY_PICKLES):
                for operation, argument, _place in pickletools.genops(file):
                    name = str(argument).replace(" ", ".") if operation.name == "GLOBAL" else ""
                    if _SIZED.fullmatch(name):
                        raise pickle.UnpicklingError(f"GLOBAL {name}")
    except Exception as error:  # a damaged pickle can fail in any way
        raise _refusal(path, error) from error


def _check_archive(path: Path) -> None:
    """Raise CheckpointError for a zip archive that is not one of PyTorch's, which maps its entries as they lie."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    if sum(entry.filename.split("/")[1:] == ["data.pkl"] for entry in entries) != 1:
        names = ", ".join(entry.filename for entry in entries[:4]) or "nothing"
        raise CheckpointError(f"{path} is a zip archive of {names}; if the weights are in it, unpack it.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} is a compressed archive; use the file as it was downloaded.")


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """Return one sentence in place of the long message of torch's restricted unpickler."""
    call = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and call:
        return CheckpointError(
            f"{path} wants to run {call[1]} while loading, which weights never need; nothing was executed. "
            "Use a .safetensors file of the same weights, or ask whoever made this one."
        )
    if "Unsupported operand" in str(
        error
    ):  # protocols 4 and 5, which torch does not read without running them
        return CheckpointError(
            f"{path} is a pickle of a kind that cannot be read safely; whoever made it can save it as .safetensors, or "
            "with torch.save as it is by default (pickle_protocol=2)."
        )
    return _damaged(path, (str(error).strip() or type(error).__name__).splitlines()[0][:200])
