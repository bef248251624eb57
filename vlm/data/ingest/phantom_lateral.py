"""Draw a lateral view of a synthetic chest: the patient faces left, so the sternum is left and the spine right."""

import cv2
import numpy as np

from vlm.data.ingest.phantom_image import SIZE, draw_pose, expose, fill_ellipse, to_pixel


def draw_lateral(effusion: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw a lateral view with or without fluid in the posterior costophrenic angle; SIZE × SIZE, uint8."""
    anatomy, disease, film = rng.spawn(3)  # the same seed draws the same chest with and without fluid
    picture, lung = _draw_anatomy(anatomy)
    fluid = _draw_fluid(disease) * lung
    if effusion:
        picture += cv2.GaussianBlur(fluid, (0, 0), 1.5) * (1 - picture / 255)
    picture = cv2.warpAffine(expose(picture, film), draw_pose(film), (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _draw_anatomy(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a chest without findings (0 to 255) and the mask of the lung, both lungs being one shape; float32."""
    picture: np.ndarray = np.full((SIZE, SIZE), 14, dtype=np.float32)
    fill_ellipse(picture, 0.52, 0.62, 0.4, 0.6, 128)  # trunk
    fill_ellipse(picture, 0.6, 0.04, 0.14, 0.16, 120, angle=10)  # neck
    lung: np.ndarray = np.zeros_like(picture)
    width = rng.uniform(0.27, 0.29)
    fill_ellipse(lung, 0.51, 0.49, width, rng.uniform(0.35, 0.37), 1, angle=-8)
    for _ in range(2):  # the domes of the diaphragm are high in front and fall to the deep angle behind
        fill_ellipse(lung, 0.38 + rng.uniform(-0.02, 0.02), 0.93, 0.3, rng.uniform(0.2, 0.25), 0, angle=14)
    lung = cv2.GaussianBlur(lung, (0, 0), 1.5)
    picture = picture * (1 - lung) + rng.uniform(46, 60) * lung
    hilum = np.array([0.5, 0.44])
    vessels = np.zeros_like(picture)
    for angle in rng.uniform(0, 2 * np.pi, size=14):
        tip = hilum + rng.uniform(0.08, 0.16) * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(vessels, to_pixel(hilum), to_pixel(tip), float(rng.uniform(14, 26)), 2, cv2.LINE_AA)
    picture += cv2.GaussianBlur(vessels, (0, 0), 1.6) * lung
    organs = np.zeros_like(picture)
    fill_ellipse(organs, 0.36, 0.63, rng.uniform(0.12, 0.14), rng.uniform(0.15, 0.17), 85, angle=25)  # heart
    picture = np.maximum(picture, 60 + cv2.GaussianBlur(organs, (0, 0), 2.5))
    _draw_bones(picture, rng)
    return picture, lung


def _draw_bones(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Add the sternum in front, the vertebrae behind, and ribs that run down forwards."""
    bones = np.zeros_like(picture)
    spacing, bend = rng.uniform(0.072, 0.08), rng.uniform(0.03, 0.05)
    for number in range(13):
        y = 0.08 + spacing * number
        x = 0.82 - bend * ((y - 0.5) / 0.4) ** 2  # kyphosis
        cv2.rectangle(bones, to_pixel((x - 0.035, y - 0.026)), to_pixel((x + 0.035, y + 0.026)), 2.0, -1, cv2.LINE_AA)
    for rib in range(7):
        start, end = (0.76, 0.2 + 0.075 * rib), (0.3, 0.3 + 0.075 * rib)
        cv2.line(bones, to_pixel(start), to_pixel(end), 0.7, 3, cv2.LINE_AA)
    cv2.line(bones, to_pixel((0.24, 0.24)), to_pixel((0.17, 0.52)), 1.8, 7, cv2.LINE_AA)  # sternum
    picture += cv2.GaussianBlur(bones, (0, 0), 1.0) * rng.uniform(16, 24)


def _draw_fluid(rng: np.random.Generator) -> np.ndarray:
    """Draw the added brightness of fluid that climbs up the posterior chest wall, before masking by the lung."""
    level, climb = rng.uniform(0.66, 0.7), rng.uniform(0.06, 0.1)
    x = np.linspace(0.45, 1, 24)
    meniscus = np.column_stack([x, level + 0.04 - climb * ((x - 0.45) / 0.35) ** 2])
    outline = np.vstack([meniscus, np.array([[1, 1], [0.45, 1]])])
    layer = np.zeros((SIZE, SIZE), dtype=np.float32)
    cv2.fillPoly(layer, [np.rint(outline * SIZE).astype(np.int32)], float(rng.uniform(110, 140)), cv2.LINE_AA)
    return layer
