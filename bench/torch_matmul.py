"""torch_matmul: stock PyTorch's F.linear in bf16 by cuBLASLt, free to split K as it is by default.

The other side of bench_matmul_cuda, timed in the same way: launches in a CUDA graph, weights rotating
over 2 GiB, the median of 9 replays. Prints microseconds a launch and one JSON line.
"""
import json

import torch
import torch.nn.functional as F

SHAPES = [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288), (2048, 2048), (151936, 4096)]
TOKENS = [64, 128, 256, 512, 4096]
POOL = 1 << 30  # elements of weights


def time_graph(launch, count):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            launch(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            launch(i)
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / count)
    return sorted(times[1:])[4]


def main():
    torch.backends.cuda.preferred_blas_library("cublaslt")
    pool = torch.empty(POOL, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1)
    rows = []
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for n, k in SHAPES:
        for m in TOKENS:
            if n > 100000 and m > 512:
                continue
            copies = max(1, min(POOL // (n * k), 64))
            weights = [pool[i * n * k:(i + 1) * n * k].view(n, k) for i in range(copies)]
            x = torch.empty(m, k, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1)
            flops = 2 * m * n * k
            count = 4 if flops > 5e11 else 12 if flops > 5e10 else 48
            us = time_graph(lambda i: F.linear(x, weights[i % copies]), count)
            rows.append({"n": n, "k": k, "m": m, "torch_us": round(us, 3)})
            print(f"({n:6d}, {k:5d}) {m:5d} {us:10.2f} us")
    print(json.dumps({"bench": "torch_matmul", "rows": rows}))


if __name__ == "__main__":
    main()
