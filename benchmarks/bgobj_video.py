"""How often a fixed camera's background is known again: background subtraction and the cache's matching on real frames.

No language model takes part: what is matched are pixels, and what would be stored is counted at LLaVA-1.5-7B's sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.bgobj_models import read_config
from trainers.bgobj_llava.cache.background_cache import BackgroundCache
from trainers.bgobj_llava.cache.options import CacheOptions, Hit
from trainers.bgobj_llava.cache.scene import CacheRequest, Scene
from trainers.bgobj_llava.cost import CostModel, Request
from trainers.bgobj_llava.detection.build import build_detector
from trainers.bgobj_llava.detection.options import DetectorOptions
from trainers.bgobj_llava.geometry import Canvas, MaskPolicy, Placed, open_image, split_boxes

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
N_PREFIX = 35
BF16 = 2
MIB = 2**20
CONTEXT = "video"
MATCHES = (("contained", 0.0), ("approx", 6.0), ("approx", 8.0))


def read_frames(source: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames, RGB (h, w, 3), of a folder of images in the order of their names, or of a video file.

    Raises:
        SystemExit: If there are none, or nothing here can decode the file.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES)
        if not files:
            raise SystemExit(f"{source}: no frames ({', '.join(IMAGES)})")
        for path in files:
            yield np.asarray(open_image(path))
        return
    if not source.is_file():
        raise SystemExit(f"{source}: no such file or folder")
    try:
        import cv2
    except ImportError as error:
        raise SystemExit(f"{source}: a video file needs OpenCV (pip install opencv-python-headless), or give frames") from error
    video = cv2.VideoCapture(str(source))
    while True:
        found, frame = video.read()
        if not found:
            return
        yield frame[..., ::-1].copy()


def measure(source: Path, *, step: int, dilate: int, bgsub_tau: float, bgsub_frames: int) -> dict[str, Any]:
    """Split every `step`-th frame and look its background up.

    Args:
        source: Folder of frames, or a video file.
        step: Frames from one request to the next.
        dilate: Rings of patches around objects.
        bgsub_tau: Grey levels above which a patch is an object.
        bgsub_frames: Frames of the median that stands for the empty scene.
    Returns:
        Object share, and per kind of match the hit rate against the previous frame alone and with a cache of all.
    """
    requests, changed = _read_requests(source, step, dilate, bgsub_tau, bgsub_frames)
    if len(requests) < 2:
        raise SystemExit(f"{source}: {len(requests)} frames; expected two or more at step {step}")
    shares = [float(request.objects.mean()) for request in requests]
    return {
        "source": source.name, "frames": len(requests), "step": step,
        "object_share_mean": float(np.mean(shares)), "object_share_max": max(shares),
        "background_drift_median": float(np.median(changed)),
        "rows": [_match(requests, match, tau) for match, tau in MATCHES],
    }  # fmt: skip


def _read_requests(
    source: Path, step: int, dilate: int, bgsub_tau: float, bgsub_frames: int
) -> tuple[list[CacheRequest], list[float]]:
    """Return the requests, and how much the patches outside objects change on average between two of them."""
    vision = read_config().vision_config
    canvas = Canvas(vision.image_size, vision.patch_size)
    options = DetectorOptions(backend="bgsub", bgsub_tau=bgsub_tau, bgsub_frames=bgsub_frames)
    detector, policy = build_detector(options, canvas), MaskPolicy(dilate=dilate, no_detection="bg_only")
    requests: list[CacheRequest] = []
    changes: list[float] = []
    for number, frame in enumerate(read_frames(source)):
        if number % step:
            continue
        placed: Placed = canvas.place(Image.fromarray(frame))
        found = detector.detect([frame])[0]
        split = split_boxes(found.boxes, placed, canvas, policy, found.scores, found.masks)
        if requests:
            mask = (split.background & ~requests[-1].objects).reshape(canvas.grid, canvas.grid)
            pixels = mask.repeat(canvas.patch_px, axis=0).repeat(canvas.patch_px, axis=1)
            difference = np.abs(placed.pixels.astype(np.int16) - requests[-1].pixels)[pixels]
            changes.append(float(difference.mean()) if difference.size else 0.0)
        requests.append(CacheRequest(placed.pixels, split.raw, split.objects, "camera"))
    return requests, changes


def _match(requests: Sequence[CacheRequest], match: str, tau: float) -> dict[str, Any]:
    previous = sum(_hits_previous(before, now, match, tau) for before, now in zip(requests[:-1], requests[1:], strict=True))
    cache = _open(match, tau)
    hits = sum(_look_up_or_store(cache, request) for request in requests)
    cost = CostModel(read_config())
    tokens, prefix = _stored_bytes(requests, cache, cost)
    return {
        "match": match, "tau": tau,
        "hit_rate_previous_frame": previous / (len(requests) - 1),
        "hit_rate_cache": hits / len(requests),
        "entries": len(cache), "token_bytes": tokens, "kv_bytes": prefix,
        "misses": {reason: count for reason, count in cache.counters.misses.items() if count},
    }  # fmt: skip


def _hits_previous(before: CacheRequest, now: CacheRequest, match: str, tau: float) -> bool:
    """Whether the background of one frame may stand for that of the next."""
    cache = _open(match, tau)
    _store(cache, before)
    return _hit(cache, now) is not None


def _look_up_or_store(cache: BackgroundCache, request: CacheRequest) -> bool:
    found = _hit(cache, request)
    if found is None:
        _store(cache, request)
    return found is not None


def _open(match: str, tau: float) -> BackgroundCache:
    cache = BackgroundCache(CacheOptions(mode="tokens", match=match, tau=tau, device_gib=64.0))
    cache.new_context(CONTEXT)
    return cache


def _store(cache: BackgroundCache, request: CacheRequest) -> None:
    """Store a frame's background with one number per token; sizes are computed."""
    cache.store(request, CONTEXT, torch.zeros(int((~request.objects).sum()), 1), {})


def _hit(cache: BackgroundCache, request: CacheRequest) -> Hit | None:
    found = cache.look_up(request, CONTEXT)
    if isinstance(found, Hit):
        found.release()
        return found
    return None


def _stored_bytes(requests: Sequence[CacheRequest], cache: BackgroundCache, cost: CostModel) -> tuple[int, int]:
    """Return what all entries would hold at 7B in bf16: tokens, and keys and values."""
    kept = [request for request in requests if cache.holds(_key(request))]
    sizes = {_key(request): int((~request.objects).sum()) for request in kept}
    prefixes = [cost.segment_lengths(Request(n_bg, cost.n_patches - n_bg, N_PREFIX, 0))[0] for n_bg in sizes.values()]
    tokens = sum(cost.token_bytes(n_bg, BF16) for n_bg in sizes.values())
    return tokens, sum(cost.prefix_bytes(rows, BF16) for rows in prefixes)


def _key(request: CacheRequest) -> str:
    return Scene(request).key(CONTEXT)


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(
        f"{result['source']}: {result['frames']} frames, every {result['step']}; objects cover "
        f"{100 * result['object_share_mean']:.0f}% of the patches on average, {100 * result['object_share_max']:.0f}% at most; "
        f"background pixels change by {result['background_drift_median']:.2f} grey levels"
    )
    print(f"  {'match':<18}{'previous frame':>15}{'cache':>9}{'entries':>9}{'tokens MiB':>12}{'KV MiB':>10}")
    for row in result["rows"]:
        name = row["match"] if row["match"] != "approx" else f"approx, TAU {row['tau']:g}"
        print(
            f"  {name:<18}{100 * row['hit_rate_previous_frame']:14.1f}%{100 * row['hit_rate_cache']:8.1f}%{row['entries']:9}"
            f"{row['token_bytes'] / MIB:12.1f}{row['kv_bytes'] / MIB:10.0f}"
        )
