"""Hours of a training, from its FLOPs and from what share of a GPU's peak such trainings reach.

That share (MFU, here with the recomputation among the FLOPs) is taken from LLaVA-1.5: the hours that its authors name
for the 7B on 8 A100 are so many FLOPs of our step on their rows, recomputing layers as they do:

    share = rows x FLOPs a row / (8 x 312e12 x 3600 x hours)

for 558,128 rows in 3.5 hours (projector), and 665,298 rows in 10 hours (full). The authors' own step computes more than
ours for the same rows, and their hours hold everything, so that this is a careful figure.

Source: haotian-liu/LLaVA README.md, "Train" @ c121f04.
"""

from typing import NamedTuple

from llava_ohd.errors import LlavaOhdError

__all__ = ["GPUS", "LLAVA_HOURS", "MFU", "Gpu", "Published", "hours"]


class Gpu(NamedTuple):
    """A GPU's peak for dense bfloat16 products summed in float32, in TFLOP/s, and where the maker says so."""

    peak: float
    source: str


GPUS = {
    "A100": Gpu(312, "NVIDIA A100 datasheet"),
    "H100": Gpu(989, "NVIDIA H100 datasheet, SXM, without sparsity"),
    "H100-PCIe": Gpu(756, "NVIDIA H100 datasheet, PCIe, without sparsity"),
    "H200": Gpu(989, "NVIDIA H200 datasheet, SXM, without sparsity"),
    "A40": Gpu(149.7, "NVIDIA A40 datasheet, without sparsity"),
    "A6000": Gpu(154.8, "NVIDIA RTX A6000 datasheet, without sparsity"),
    "L40S": Gpu(362, "NVIDIA L40S datasheet, without sparsity"),
    "RTX3090": Gpu(71, "NVIDIA GA102 whitepaper, FP32 accumulate, without sparsity"),
    "RTX4090": Gpu(165.2, "NVIDIA Ada whitepaper, FP32 accumulate, without sparsity"),
}


class Published(NamedTuple):
    """What LLaVA's authors name: stage, rows, and hours on 8 A100 of the 7B and the 13B."""

    stage: str
    rows: int
    hours: dict[str, float]


LLAVA_HOURS = (
    Published("projector", 558_128, {"7b": 3.5, "13b": 5.5}),
    Published("full", 665_298, {"7b": 10.0, "13b": 20.0}),
)
MFU = {"projector": 0.39, "lora": 0.32, "qlora": 0.32, "full": 0.32}
"""Share of the peak by stage. lora and qlora were not published: that of full stands in. Quantised layers are unpacked
twice a step, which is not counted."""


def hours(flops: float, gpus: int, gpu: str, share: float) -> float:
    """Returns the hours that so many FLOPs take.

    Raises:
        LlavaOhdError: a GPU whose peak is not known here.
    """
    if gpu not in GPUS:
        raise LlavaOhdError(f"--gpu {gpu} is not known; give one of {', '.join(GPUS)}, and --mfu to correct its peak")
    return flops / (gpus * GPUS[gpu].peak * 1e12 * share) / 3600
