"""Small images with boxes on disk: a bright square and a dark one on grey."""

import json
import pathlib

import numpy as np
from PIL import Image

NAMES = ("bright", "dark")


def scene(rng: np.random.Generator, shape: tuple[int, int] = (16, 16)):
    """An image, and rows (x, y, w, h, class) of its objects."""
    image = rng.integers(100, 140, (*shape, 3)).astype(np.uint8)
    rows, half = [], shape[1] // 2
    for kind, side in enumerate(rng.permutation(2)):  # each in its half: none is hidden
        w, h = rng.integers(5, 8, 2)
        x = half * side + rng.integers(0, half - w + 1)
        y = rng.integers(0, shape[0] - h + 1)
        image[y : y + h, x : x + w] = 10 if kind else 240
        rows.append((x, y, w, h, kind))
    return image, np.array(rows, float)


def write(folder: pathlib.Path, count: int = 20, seed: int = 0) -> dict:
    """Writes `count` scenes to images/, boxes.json and labels/; returns the JSON."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir()
    (folder / "labels" / "classes.txt").write_text("\n".join(NAMES) + "\n")
    images, boxes = [], []
    for n in range(count):
        image, rows = scene(rng)
        Image.fromarray(image).save(folder / "images" / f"{n:02}.png")
        images.append({"id": n, "file_name": f"{n:02}.png", "height": 16, "width": 16})
        lines = []
        for x, y, w, h, kind in rows.tolist():
            own = {"image_id": n, "category_id": 10 + int(kind), "bbox": [x, y, w, h]}
            boxes.append({"id": len(boxes), "iscrowd": 0, "area": w * h, **own})
            shares = (x + w / 2) / 16, (y + h / 2) / 16, w / 16, h / 16
            lines.append(" ".join([str(int(kind)), *map(str, shares)]))
        (folder / "labels" / f"{n:02}.txt").write_text("\n".join(lines) + "\n")
    kinds = [{"id": 10 + n, "name": name} for n, name in enumerate(NAMES)]
    content = {"images": images, "annotations": boxes, "categories": kinds}
    (folder / "boxes.json").write_text(json.dumps(content))
    return content
