"""Draw a chest-radiograph-like image of a phantom case: lungs, heart, ribs, spine and optionally an opacity.

As on a real film the patient faces the reader: the patient's right lung is on the left of the picture.
"""

import cv2
import numpy as np

SIZE = 256
"""Side of the picture, pixels."""
ZONES = {"upper": 0.31, "middle": 0.47, "lower": 0.63}
"""Height of each lung zone's centre, share of the picture."""
LUNGS = {"right": 0.32, "left": 0.7}
"""Horizontal centre of each lung, share of the picture."""


def draw_chest(
    finding: str,
    side: str | None,
    zone: str | None,
    rng: np.random.Generator,
    extent: float = 1.0,
    density: float = 1.0,
    film: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one case.

    `finding` is `none`, `mild`, `patchy` or `dense`; `side` is `right`, `left` or `both`; `zone` a key of `ZONES`.
    `extent` scales the opacity and `density` its brightness; `film` draws another exposure and pose of the same chest.
    Returns the picture (SIZE × SIZE, uint8) and the mask of the drawn opacity (SIZE × SIZE, bool).
    """
    anatomy, disease, own_film = rng.spawn(3)  # the same seed draws the same chest with and without an opacity
    film = film or own_film
    picture, lungs = _draw_anatomy(anatomy)
    opacity = np.zeros((SIZE, SIZE), dtype=np.float32)
    if finding != "none":
        for lung in ("right", "left") if side == "both" else (side,):
            opacity += density * _draw_opacity(finding, lung, zone, disease, extent)
    # Tissue hides an opacity that reaches beyond the lung; a little of it stays visible there.
    opacity = opacity * (0.15 + 0.85 * cv2.GaussianBlur(lungs, (0, 0), 3))
    hidden = picture + opacity * (1 - picture / 255)
    matrix = draw_pose(film)
    picture = cv2.warpAffine(expose(hidden, film), matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(opacity, matrix, (SIZE, SIZE)) > 12
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def _draw_anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a chest without findings (0 to 255) and the mask of both lungs (0 to 1), float32."""
    picture: np.ndarray = np.full((SIZE, SIZE), 14, dtype=np.float32)
    fill_ellipse(picture, 0.5, 0.62, 0.47, 0.62, 128)  # trunk
    fill_ellipse(picture, 0.5, 0.04, 0.13, 0.16, 120)  # neck
    lungs: np.ndarray = np.zeros_like(picture)
    width, height = rng.uniform(0.145, 0.165), rng.uniform(0.29, 0.32)
    for side, x in LUNGS.items():
        fill_ellipse(lungs, x, 0.46, width, height, 1, angle=6 if side == "right" else -6)
    for x in LUNGS.values():  # the domes of the diaphragm cut the lungs below
        fill_ellipse(lungs, x, 0.86, 0.24, rng.uniform(0.12, 0.15), 0)
    lungs = cv2.GaussianBlur(lungs, (0, 0), 1.5)
    picture = picture * (1 - lungs) + rng.uniform(46, 60) * lungs
    vessels = np.zeros_like(picture)
    for side, x in LUNGS.items():  # vessels fan out from the hilum
        hilum = np.array([x + (0.09 if side == "right" else -0.09), 0.47])
        for angle in rng.uniform(0, 2 * np.pi, size=9):
            tip = hilum + rng.uniform(0.08, 0.16) * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(vessels, to_pixel(hilum), to_pixel(tip), float(rng.uniform(14, 26)), 2, cv2.LINE_AA)
    picture += cv2.GaussianBlur(vessels, (0, 0), 1.6) * lungs
    organs = np.zeros_like(picture)
    fill_ellipse(organs, 0.5, 0.5, 0.045, 0.6, 70)  # spine and mediastinum
    fill_ellipse(organs, 0.56, 0.62, rng.uniform(0.12, 0.15), rng.uniform(0.14, 0.17), 95, angle=-35)  # heart
    picture = np.maximum(picture, 60 + cv2.GaussianBlur(organs, (0, 0), 2.5))
    _draw_ribs(picture, rng)
    return picture, lungs


def _draw_ribs(picture: np.ndarray, rng: np.random.Generator) -> None:
    bones = np.zeros_like(picture)
    spacing = rng.uniform(0.066, 0.074)
    for side, x in LUNGS.items():
        turn = 18 if side == "left" else -18
        for rib in range(8):
            centre = to_pixel((x, 0.24 + spacing * rib))
            axes = (int(SIZE * (0.17 + 0.006 * rib)), int(SIZE * 0.07))
            cv2.ellipse(bones, centre, axes, turn, 180, 360, 1.0, 4, cv2.LINE_AA)
        direction = -1 if side == "right" else 1
        inner, outer = (0.5 + 0.04 * direction, 0.19), (0.5 + 0.34 * direction, 0.135)
        cv2.line(bones, to_pixel(inner), to_pixel(outer), 1.4, 5, cv2.LINE_AA)  # clavicle
    picture += cv2.GaussianBlur(bones, (0, 0), 1.0) * rng.uniform(16, 26)


def _draw_opacity(
    finding: str, lung: str | None, zone: str | None, rng: np.random.Generator, extent: float
) -> np.ndarray:
    """Draw the added brightness of one lung's opacity, before masking by the lung; SIZE × SIZE, float32."""
    x = LUNGS[str(lung)] + rng.uniform(-0.02, 0.02)
    y = ZONES[str(zone)] + rng.uniform(-0.02, 0.02)
    layer = np.zeros((SIZE, SIZE), dtype=np.float32)
    across = min(extent, 1.4)  # a large one grows along its lung, not into the other
    if finding == "dense":
        width, height = across * rng.uniform(0.13, 0.16), extent * rng.uniform(0.085, 0.105)
        fill_ellipse(layer, x, y + 0.03, width, height, rng.uniform(120, 150))
        return cv2.GaussianBlur(layer, (0, 0), 4)
    if finding == "patchy":
        for _ in range(rng.integers(5, 8)):
            dx, dy = across * rng.normal(0, 0.052), extent * rng.normal(0, 0.036)
            width, height = extent * rng.uniform(0.022, 0.036), extent * rng.uniform(0.02, 0.034)
            fill_ellipse(layer, x + dx, y + dy, width, height, rng.uniform(75, 105))
        return cv2.GaussianBlur(layer, (0, 0), 2.2)
    fill_ellipse(layer, x, y, across * rng.uniform(0.1, 0.12), extent * rng.uniform(0.07, 0.085), 1)
    haze = cv2.GaussianBlur(layer, (0, 0), 9 * extent)
    net = cv2.GaussianBlur(rng.normal(0, 1, (SIZE, SIZE)).astype(np.float32), (0, 0), 1.5)
    return haze * (rng.uniform(34, 46) + 42 * net)  # faint, with a fine net in it


def expose(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply the exposure, contrast, blur and grain of a film."""
    gamma, gain, offset = rng.uniform(0.85, 1.18), rng.uniform(0.88, 1.1), rng.uniform(-10, 10)
    exposed = 255 * (np.clip(picture, 0, 255) / 255) ** gamma * gain + offset
    grain = cv2.GaussianBlur(rng.normal(0, 1, picture.shape).astype(np.float32), (0, 0), 0.7)
    return cv2.GaussianBlur(exposed.astype(np.float32), (0, 0), 0.8) + rng.uniform(3, 7) * grain


def draw_pose(rng: np.random.Generator) -> np.ndarray:
    """Draw a random affine matrix of the patient's pose: a small rotation, scale and shift; 2 × 3."""
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.uniform(-4, 4), rng.uniform(0.93, 1.06))
    return matrix + np.array([[0, 0, 1], [0, 0, 1]]) * rng.uniform(-8, 8, size=(2, 1))


def to_pixel(point: "tuple[float, float] | np.ndarray") -> tuple[int, int]:
    return round(float(point[0]) * SIZE), round(float(point[1]) * SIZE)


def fill_ellipse(layer: np.ndarray, x: float, y: float, a: float, b: float, value: float, angle: float = 0) -> None:
    """Fill an ellipse; centre and half axes as shares of the picture."""
    axes = max(1, round(a * SIZE)), max(1, round(b * SIZE))
    cv2.ellipse(layer, to_pixel((x, y)), axes, angle, 0, 360, value, -1, cv2.LINE_AA)
