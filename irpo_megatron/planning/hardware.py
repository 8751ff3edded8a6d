"""What a device can do at best, by public data sheets, and what of it is taken to be reached.

Dense figures: data sheets that give FLOP/s "with sparsity" are halved.
"""

from __future__ import annotations

from dataclasses import dataclass

from irpo_megatron.errors import UserError

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Link:
    """One device's connection to its peers, one way."""

    bytes_a_second: float
    latency_seconds: float
    """Of one message between two peers."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU, or a CPU process, with its links.

    Attributes:
        flops: FLOP/s of dense matrix products in the numbers that the name of the key says.
        usable_memory: Share of the memory that tensors get; the rest is the context, the communication library's
            buffers and what the allocator cannot use.
        product_share: Share of the peak that large matrix products reach.
        bandwidth_share: Share of the memory's bandwidth that element-wise kernels reach.
        launch_seconds: From one kernel, or operator, to the next, where it has next to nothing to do.
    """

    name: str
    flops: dict[str, float]
    memory_bytes: float
    bandwidth: float
    within_node: Link
    between_nodes: Link
    devices_a_node: int
    usable_memory: float = 0.9
    product_share: float = 0.7
    bandwidth_share: float = 0.8
    launch_seconds: float = 5e-6

    def peak(self, number: str) -> float:
        """FLOP/s in `fp32`, `bf16` or `fp8`.

        Raises:
            UserError: it has no such products.
        """
        if number not in self.flops:
            raise UserError(
                f"{self.name} has no matrix products in {number}",
                f"it has {', '.join(self.flops)}",
                "change precision.fp8 or generation.tensorrt_llm.fp8_weights, whichever asks for them, or --gpu",
            )
        return self.flops[number]


# ConnectX-7, one 400 Gb/s port a GPU (NVIDIA DGX H100 data sheet); 200 Gb/s ConnectX-6 in DGX A100. The latencies of a
# ring's step are those of NCCL's own tuning model (src/graph/tuning.cc): 1.9 us over NVLink, 14 over the network.
_NDR = Link(bytes_a_second=50 * GB, latency_seconds=14e-6)
_HDR = Link(bytes_a_second=25 * GB, latency_seconds=14e-6)
_NVLINK_LATENCY = 1.9e-6

DEVICES = {
    device.name: device
    for device in (
        Device(
            # NVIDIA A100 Tensor Core GPU data sheet, SXM 80 GB: 312 TFLOP/s bf16, 19.5 fp32, 2,039 GB/s,
            # NVLink 600 GB/s both ways together.
            name="a100-80gb",
            flops={"fp32": 19.5e12, "bf16": 312e12},
            memory_bytes=80 * GB,
            bandwidth=2039 * GB,
            within_node=Link(bytes_a_second=300 * GB, latency_seconds=_NVLINK_LATENCY),
            between_nodes=_HDR,
            devices_a_node=8,
        ),
        Device(
            # NVIDIA H100 Tensor Core GPU data sheet, SXM: 1,979 TFLOP/s bf16 and 3,958 fp8 with sparsity, 67 fp32,
            # 3.35 TB/s, NVLink 900 GB/s both ways together.
            name="h100-80gb",
            flops={"fp32": 67e12, "bf16": 989.5e12, "fp8": 1979e12},
            memory_bytes=80 * GB,
            bandwidth=3350 * GB,
            within_node=Link(bytes_a_second=450 * GB, latency_seconds=_NVLINK_LATENCY),
            between_nodes=_NDR,
            devices_a_node=8,
        ),
        Device(
            # NVIDIA H200 Tensor Core GPU data sheet, SXM: the H100's FLOP/s and links, 141 GB at 4.8 TB/s.
            name="h200-141gb",
            flops={"fp32": 67e12, "bf16": 989.5e12, "fp8": 1979e12},
            memory_bytes=141 * GB,
            bandwidth=4800 * GB,
            within_node=Link(bytes_a_second=450 * GB, latency_seconds=_NVLINK_LATENCY),
            between_nodes=_NDR,
            devices_a_node=8,
        ),
        Device(
            # NVIDIA DGX B200 data sheet, an eighth of it: 36 PFLOP/s bf16 and 72 fp8 with sparsity, 1,440 GB at
            # 64 TB/s, NVLink 14.4 TB/s both ways together; 75 TFLOP/s fp32 (NVIDIA HGX B200 specifications).
            name="b200-180gb",
            flops={"fp32": 75e12, "bf16": 2250e12, "fp8": 4500e12},
            memory_bytes=180 * GB,
            bandwidth=8000 * GB,
            within_node=Link(bytes_a_second=900 * GB, latency_seconds=_NVLINK_LATENCY),
            between_nodes=_NDR,
            devices_a_node=8,
        ),
        Device(
            # One thread a process on the machine of docs/performance.md: products as `benchmarks.planning` measures
            # them, of which training reaches 84 % there. Memory, bandwidth and Gloo's link are round figures.
            name="cpu",
            flops={"fp32": 120e9, "bf16": 120e9},
            memory_bytes=8 * GB,
            bandwidth=10 * GB,
            within_node=Link(bytes_a_second=1 * GB, latency_seconds=100e-6),
            between_nodes=Link(bytes_a_second=1 * GB, latency_seconds=100e-6),
            devices_a_node=64,
            usable_memory=1.0,
            product_share=0.84,
            launch_seconds=20e-6,
        ),
    )
}


def find_device(name: str) -> Device:
    """A device by its name.

    Raises:
        UserError: there is none.
    """
    if name not in DEVICES:
        raise UserError(f"--gpu {name}", f"the devices known are {', '.join(DEVICES)}", "choose one of them")
    return DEVICES[name]
