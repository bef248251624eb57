"""Cache a frozen CNN's features on disk: computed once, then read in place of the images.

The features are the CNN's grid pooled to image tokens and to f: a hundredth of the pixels' work and a tenth of their
size. The files lie in a private temporary folder beside the rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from vlm.config import Config
from vlm.data.blank_images import blank_notice
from vlm.data.case import Example
from vlm.data.dataset import CaseDataset
from vlm.data.images.store import image_label
from vlm.data.storage import new_array
from vlm.device import Choice
from vlm.distributed import log_rank0
from vlm.model.clinical_vlm import ClinicalVLM


def choose_features(config: Config) -> Choice[bool]:
    """Choose whether to cache the CNN's features: the CNN and the images must not change."""
    augment = config.data.augment
    if config.model.vision.train:
        return Choice(False, "the CNN trains")
    if PartialState().num_processes > 1:
        return Choice(False, "several processes read the images, each its share")
    if any((augment.rotate, augment.shift, augment.scale, augment.contrast)):
        return Choice(False, "augmentation changes the images")
    return Choice(True, "the CNN is frozen and the images stay as they are")


@torch.no_grad()
def keep_features(model: ClinicalVLM, config: Config, datasets: Sequence[CaseDataset], batch_size: int = 32) -> None:
    """Compute and cache the features of these datasets, if `choose_features` allows it.

    Also marks cases without an image or with a blank one. Raises `UserError` for an unreadable image.
    """
    if not choose_features(config).value:
        return
    for dataset in datasets:
        plain = dataset.plain()
        shown = np.zeros(len(dataset), dtype=bool)
        kept = new_array((len(dataset), *model.vision.feature_shape))
        loader = torch.utils.data.DataLoader(
            plain, batch_size, num_workers=config.train.workers, collate_fn=_pixels_of, shuffle=False
        )
        start = 0
        for pixels, has_image in tqdm(loader, desc="features of the frozen CNN", unit="batch", leave=False):
            with model.autocast():
                features = model.vision.features(pixels.to(model.device)).float().cpu().numpy()
            kept[start : start + len(features)] = features
            shown[start : start + len(features)] = has_image.numpy()
            start += len(features)
        dataset.mark_images(shown)
        log_rank0(*blank_images(dataset, shown))
        dataset.features = kept


def blank_images(dataset: CaseDataset, shown: np.ndarray) -> list[str]:
    """Format a warning on blank images; `shown` (N, bool) is true for a case whose image is not blank."""
    cells = dataset.rows.select(np.flatnonzero(~shown))["image"]
    blank = [image_label(cell["path"]) for cell in cells if cell]
    images = len(blank) + int(shown.sum())
    return [f"warning: {blank_notice(len(blank), images, blank[0])}"] if blank else []


def _pixels_of(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.stack([example["pixel_values"] for example in batch])
    return pixels, torch.tensor([example["has_image"] for example in batch])
