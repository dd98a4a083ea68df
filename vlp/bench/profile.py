"""Where the time of a call goes: on the host, on the device, and by kernel."""

import time

import torch
from torch.profiler import ProfilerActivity, profile

from vlp.bench.timing import Work, device, wait
from vlp.files import write_text

ROWS = 60  # of the table


def write_profile(work: Work, path: str) -> None:
    """Profile a call after two others, and write tables of its operations to a file, by time on the device and host.

    The first line has the milliseconds until the host had issued the work, until the device had done it, and in which
    the device was busy. Profiling itself slows the host.
    """
    work()
    work()
    wait()
    cuda = device().type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        started = time.perf_counter()
        work()
        issued = time.perf_counter() - started
        wait()
        done = time.perf_counter() - started
    events = profiler.key_averages()
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in on_device) / 1e6 if cuda else done
    line = f"host {issued * 1e3:.0f} ms, whole call {done * 1e3:.0f} ms, device busy {busy * 1e3:.0f} ms"
    orders = [*(["self_cuda_time_total"] if cuda else []), "self_cpu_time_total"]
    tables = [events.table(sort_by=order, row_limit=ROWS, max_name_column_width=90) for order in orders]
    write_text(path, "\n".join([line, *tables, ""]))
