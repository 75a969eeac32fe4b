"""The GPU's own ceilings, and how near the program comes to them; without a GPU, its CPU part with the demo model.

The ceilings are the image tower alone, on pixels that are there already, and decoding alone. Then the handler, called
from several threads, and the whole pipeline with as many.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from crops import crops
from runs import arguments, curate, table
from safetensors.torch import save_file

from beam_curate.models.clip import ClipModelHandler, build_tower, find_checkpoint
from beam_curate.models.preprocess import DaliPreprocessor, Preprocess, read_header
from beam_curate.records import Sample
from transforms.match_tar_shards import match_tars
from transforms.read_tar_shards import read_entries

LIMIT = 100_000_000
# Of ViT-L-14 at 224 pixels, for one image: twice the multiplications of its 24 blocks and its patch embedding.
TOWER_FLOP = 162e9
MATRIX = 8192


def rate(call: Callable[[], object], count: int, seconds: float = 5.0) -> float:
    """Items a second of a call that handles ``count`` of them, repeated for some seconds after two calls to warm up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2):
        call()
    wait()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        call()
        wait()
        calls += 1
    return calls * count / (time.perf_counter() - started)


def matrix_rate() -> float:
    """FLOP a second of a large fp16 matrix product: what this card really gives."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.float16) for _ in range(2))
    return rate(lambda: a @ b, 1) * 2 * MATRIX**3


def tower_rates(batch: int) -> dict[str, float]:
    """Images a second of the ViT-L-14 image tower in fp16, by how it is run."""
    tower = build_tower(find_checkpoint("ViT-L-14", "openai"), None, torch.float16).cuda()
    images = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.float16)
    rates = {}
    with torch.inference_mode():
        rates["eager"] = rate(lambda: tower(images), batch)
        last = images.to(memory_format=torch.channels_last)
        rates["channels last"] = rate(lambda: tower(last), batch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tower(images)
        rates["CUDA graph"] = rate(graph.replay, batch)
        compiled = torch.compile(tower)
        rates["torch.compile"] = rate(lambda: compiled(images), batch)
    return rates


def decode_rate(images: Sequence, preprocess: Preprocess, batch: int, device: str, threads: int) -> float:
    """Images a second of DALI's decoding and resizing, one pipeline for each thread."""
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    local = threading.local()

    def decode(part: Sequence) -> None:
        if not hasattr(local, "dali"):
            local.dali = DaliPreprocessor(preprocess, batch, device)
            local.out = np.zeros((batch, *preprocess.size, 3), np.uint8)
        local.dali(part, local.out)

    return in_threads(decode, parts, threads) * batch


def in_threads(call: Callable, parts: Sequence, threads: int) -> float:
    """Calls a second, over all parts, after one call in each thread to warm up."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, [parts[0]] * threads))
        started = time.perf_counter()
        list(pool.map(call, parts))
        return len(parts) / (time.perf_counter() - started)


def utilisation(call: Callable[[], object]) -> tuple[object, str]:
    """What a call returns, and the card's median utilisation meanwhile."""
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not done.wait(0.5):
            seen.append(int(subprocess.run(query, capture_output=True, text=True).stdout.split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return result, f"{statistics.median(seen):.0f} %" if seen else ""


def main() -> None:
    chosen = arguments(
        __doc__, images=(0, "photographs; 0 is 20000 with a GPU and 2500 without"), threads=(4, "threads")
    )
    gpu = torch.cuda.is_available()
    count, batch = chosen.images or (20_000 if gpu else 2500), 256
    source = crops(chosen.photos, chosen.work, count)
    model, flags = "demo", []
    if gpu:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
        model, weights = "ViT-L-14", chosen.work / "vit_l_14.safetensors"
        flags = [f"--clip_model={model}", f"--clip_pretrained={weights}", "--aesthetic_head=none", "--nsfw_head=none"]
        save_random_weights(model, weights)
        handler = ClipModelHandler(model, str(weights), batch_size=batch)
    else:
        print("no CUDA device was found: this is the CPU part, with the demo model; nothing here is about a GPU\n")
        handler = ClipModelHandler(model, batch_size=batch)
    handler.encoder()
    preprocess = Preprocess.from_open_clip(handler.checkpoint.preprocess)
    entries = [entry for tar in match_tars([str(source)]) for entry in read_entries(tar) if isinstance(entry, Sample)]
    images = [(entry.image, read_header(entry.image, LIMIT)) for entry in entries]
    rows: list[tuple[object, ...]] = []
    tower = 0.0
    if gpu:
        matrix = matrix_rate()
        for name, speed in tower_rates(batch).items():
            rows.append(
                (
                    f"tower alone, {name}",
                    f"{speed:.0f}",
                    f"{speed * TOWER_FLOP / matrix:.0%} of {matrix / 1e12:.0f} TFLOPS",
                )
            )
            tower = max(tower, speed)
    decoding = {"cpu": decode_rate(images, preprocess, batch, "cpu", 1)}
    if gpu:
        decoding["cuda"] = decode_rate(images, preprocess, batch, "cuda", chosen.threads)
    rows += [(f"DALI alone, {name}", f"{speed:.0f}", "") for name, speed in decoding.items()]
    loaded = handler.load_model()
    parts = [entries[i : i + batch] for i in range(0, len(entries), batch)]

    def handle() -> float:
        return in_threads(lambda part: handler.run_inference(part, loaded), parts, chosen.threads if gpu else 1)

    speed, busy = utilisation(handle) if gpu else (handle(), "")
    ceiling = min(max(decoding.values()), tower or max(decoding.values()))
    rows.append(("handler alone", f"{speed * batch:.0f}", busy))
    small = crops(chosen.photos, chosen.work, 250)
    workers = [f"--direct_num_workers={chosen.threads}", "--direct_running_mode=multi_threading"] if gpu else []

    def pipeline() -> float:
        start = curate(small, chosen.work / "output", *flags, *workers).seconds
        return (count - 250) / (curate(source, chosen.work / "output", *flags, *workers).seconds - start)

    speed, busy = utilisation(pipeline) if gpu else (pipeline(), "")
    rows.append(("pipeline", f"{speed:.0f}", busy))
    rows.append(("pipeline, of the lower ceiling", f"{speed / ceiling:.2f}", ""))
    table(("", "images/s", ""), rows)


def save_random_weights(model: str, path: Path) -> None:
    """A checkpoint of the real shape: the speed does not depend on the numbers."""
    import open_clip

    if not path.exists():
        torch.manual_seed(0)
        save_file(open_clip.create_model(model).state_dict(), path)


if __name__ == "__main__":
    main()
