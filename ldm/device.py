"""Choice of the device and of the precision."""

from __future__ import annotations

import os

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; ``auto``: CUDA if there is one, else the CPU.

    Raises:
        ValueError: an unknown device, or one this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, expected auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device: got {name!r}, but this machine has {count} CUDA devices; use device=auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device: got {name!r}, but this machine has none; use device=auto")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device: got {name!r}, expected auto, cpu, cuda, cuda:1 or mps")
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16. Without them bf16 is slower than fp32, or impossible.

    The environment variable ``ICCR_NO_BF16=1`` makes the answer no, so that ``auto`` chooses fp32 everywhere.
    """
    if os.environ.get("ICCR_NO_BF16") == "1":
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    # Older releases have no public function for it.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return native is not None and bool(native())


def prefers_bf16(device: torch.device) -> bool:
    """Return whether bf16 is also faster there than fp32 (benchmarks/RESULTS.md).

    Intel processors need AMX for that; those of AMD are faster by AVX-512 alone.
    """
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if "intel" in str(capabilities.get("cpu_name", "")).lower() and not capabilities.get("amx_bf16"):
            return False
    return computes_in_bf16(device)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of this name; ``auto``: bf16 where that makes the device faster, else fp32.

    Raises:
        ValueError: an unknown name, or one this device does not compute in.
    """
    if name == "auto":
        name = "bf16" if prefers_bf16(device) else "fp32"
    if name not in PRECISIONS:
        raise ValueError(f"precision: got {name!r}, expected auto, {', '.join(PRECISIONS)}")
    if name == "bf16" and device.type == "cuda" and not computes_in_bf16(device):
        raise ValueError(
            "precision: got 'bf16', which this GPU does not compute in; use precision=fp16 or fp32"
        )
    if name == "fp16" and device.type == "cpu":
        raise ValueError("precision: got 'fp16', which is for GPUs; use precision=fp32 on the CPU")
    if name == "fp32":
        compute_in_fp32()
    return PRECISIONS[name]


def compute_in_fp32() -> None:
    """Switch TF32 off: convolutions and matrix products of fp32 keep its 23 bits, where TF32 has 10."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def preferred_layout(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Return the fastest layout of convolution weights: channels-last, except for fp32 on a CPU."""
    on_cpu = device.type == "cpu" and dtype == torch.float32
    return torch.contiguous_format if on_cpu else torch.channels_last
