"""Times stock PyTorch's flash attention on the shapes of bench_prefill_attention: median of 9 runs
of 10 launches, replayed from a CUDA graph. The contract's switches are set (docs/numerics.md)."""
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

LAUNCHES = 10
SHAPES = [  # sequences, rows, first position, head width
    (8, 2048, 0, 128), (8, 2048, 0, 64), (8, 256, 8192, 128), (1, 256, 8192, 128),
    (8, 256, 8192, 64), (1, 8192, 0, 128), (32, 300, 0, 128),
]


def median_us(launch):
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            launch()
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / LAUNCHES)
    return statistics.median(times[1:])


def main():
    torch.backends.cuda.enable_cudnn_sdp(False)
    print(f"PyTorch {torch.__version__}, flash, 32 query heads, 8 kv heads")
    for sequences, rows, position, width in SHAPES:
        def tensor(heads, length):
            return torch.randn(sequences, length, heads, width, device="cuda",
                               dtype=torch.bfloat16).transpose(1, 2)
        q, k, v = tensor(32, rows), tensor(8, position + rows), tensor(8, position + rows)
        mask = dict(is_causal=True) if position == 0 else dict(
            attn_mask=causal_lower_right(rows, position + rows))
        if position:  # the biased form knows no groups of heads
            k, v = k.repeat_interleave(4, 1), v.repeat_interleave(4, 1)
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            us = median_us(lambda: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, enable_gqa=position == 0, **mask))
        flop = 4 * sequences * 32 * rows * (position + (rows + 1) / 2) * width
        print(f"{sequences:9} {rows:5} {position:8} {width:5} {us:10.1f} us {flop / us * 1e-6:8.0f} TFLOP/s")


if __name__ == "__main__":
    main()
