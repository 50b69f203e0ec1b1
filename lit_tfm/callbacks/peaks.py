"""How fast a device could be: its dense bf16 matrix peak, from the vendor's own papers.

Vendors like to print the figure with 2:4 sparsity, twice the dense one, and GeForce cards do half of their fp16 figure
when they accumulate in fp32, as training does. A name must match as a whole: laptop chips and MIG slices share a name
with faster ones. What is not here has no known peak, and no utilisation is shown for it.
"""

import re

import torch

# Pattern of torch.cuda.get_device_name() -> dense FLOP/s, bf16 in, fp32 accumulated.
PEAKS: dict[str, float] = {
    # NVIDIA Blackwell datasheet (HGX B200: 36 PFLOP/s sparse on eight; GB200: 5 PFLOP/s sparse a GPU)
    r"NVIDIA B200": 2250e12,
    r"NVIDIA GB200": 2500e12,
    # NVIDIA H100, H200 and GH200 datasheets; the NVL cards' 1671 and the SXM modules' 1979 are sparse figures
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H100 NVL": 835.5e12,
    r"NVIDIA H100 80GB HBM3": 989.4e12,
    r"NVIDIA H200 NVL": 835.5e12,
    r"NVIDIA H200": 989.4e12,
    r"NVIDIA GH200 .*GB": 989.4e12,
    # NVIDIA A100 datasheet: PCIe and SXM alike
    r"(NVIDIA )?A100-(SXM4|PCIE|PCIe)-\d+GB|NVIDIA A100 80GB PCIe": 312e12,
    # NVIDIA A10, A30 and A40 datasheets
    r"NVIDIA A10": 125e12,
    r"NVIDIA A30": 165e12,
    r"NVIDIA A40": 149.7e12,
    # NVIDIA L4, L40 and L40S datasheets: half of the sparse 242, 362 and 733
    r"NVIDIA L4": 121e12,
    r"NVIDIA L40": 181e12,
    r"NVIDIA L40S": 362e12,
    # NVIDIA GA102 whitepaper (bf16 with fp32 accumulate)
    r"NVIDIA GeForce RTX 3090": 71e12,
    r"NVIDIA GeForce RTX 3090 Ti": 80e12,
    r"NVIDIA RTX A6000": 154.8e12,
    # NVIDIA Ada whitepaper (bf16 with fp32 accumulate)
    r"NVIDIA GeForce RTX 4080": 97.5e12,
    r"NVIDIA GeForce RTX 4090": 165.2e12,
    # NVIDIA RTX Blackwell whitepaper (bf16 with fp32 accumulate)
    r"NVIDIA GeForce RTX 5090": 209.5e12,
    # NVIDIA V100 datasheet. No bf16 units: fp16, which is what mixed precision uses there
    r"(NVIDIA )?Tesla V100-SXM[23]-\d+GB(-LS)?": 125e12,
    r"(NVIDIA )?Tesla V100-PCIE-\d+GB": 112e12,
    # NVIDIA T4 datasheet, fp16 as above
    r"(NVIDIA )?Tesla T4": 65e12,
    # AMD CDNA 3 datasheets
    r"AMD Instinct MI300X( OAM)?": 1307.4e12,
}


def peak(device: torch.device) -> float | None:
    """FLOP/s a device could reach in bf16, None where that is not known (every CPU, every GPU not listed)."""
    return named_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def named_peak(name: str) -> float | None:
    return next((flops for pattern, flops in PEAKS.items() if re.fullmatch(pattern, name)), None)
