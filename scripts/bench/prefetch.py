"""Training images per second for several values of data.prefetch, with two workers, in turns."""

import statistics
import time

import torch

from vlp.bench.data import photos
from vlp.bench.train import bench_examples
from vlp.config import DataConfig, SourceConfig
from vlp.data.loader import training_loader

torch.set_num_threads(1)
with photos() as shards:
    speeds = {}
    for _ in range(5):
        for prefetch in (1, 2, 4, 8):
            data = DataConfig([SourceConfig(shards)], workers=2, prefetch=prefetch, max_tokens=32)
            batches = iter(training_loader(data, 224, bench_examples(4000), 32))
            for _batch in range(4):
                next(batches)
            start = time.perf_counter()
            for _batch in range(24):
                next(batches)
            speeds.setdefault(prefetch, []).append(24 * 32 / (time.perf_counter() - start))
            batches.close()
    print({name: round(statistics.median(values)) for name, values in speeds.items()})
