"""Cache the encoder's features on disk once it does not change: computed once, then read in place of the images.

The features are the CNN's grid pooled to image tokens and to f: a hundredth of the pixels' work and a tenth of their
size. The files lie in a private temporary folder beside the rows.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from vlm.config import AugmentConfig, Config
from vlm.data.blank_images import blank_notice
from vlm.data.case import Example
from vlm.data.dataset import CaseDataset
from vlm.data.images.store import image_label
from vlm.data.storage import new_array
from vlm.data.study import StudyPicture, image_counts, roles_of
from vlm.data.study_features import StudyFeatures
from vlm.device import Choice
from vlm.distributed import log_rank0, world_size
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.progress import progress

MOST_BYTES = 1_000_000_000
"""Most bytes of features of training and validation that are kept for the test: 20,000 pictures by the demo's CNN."""


def choose_features(config: Config) -> Choice[bool]:
    """Choose whether to cache the CNN's features: the CNN and the images must not change."""
    if config.model.vision.train:
        return Choice(False, "the CNN trains")
    if world_size() > 1:
        return Choice(False, "several processes read the images, each its share")
    if config.data.augment != AugmentConfig():
        return Choice(False, "augmentation changes the images")
    return Choice(True, "the CNN is frozen and the images stay as they are")


def keep_features(model: ClinicalVLM, config: Config, datasets: Sequence[CaseDataset], batch_size: int = 32) -> None:
    """Compute and cache the features of these datasets for training, if `choose_features` allows it."""
    if choose_features(config).value:
        cache_features(model, datasets, batch_size, config.train.workers)


def are_kept_for_test(model: ClinicalVLM, splits: Mapping[str, CaseDataset]) -> bool:
    """Check whether `keep_for_test` keeps features: one process, and not more than `MOST_BYTES` of them."""
    pictures = sum(int(image_counts(splits[name].rows).sum()) for name in ("train", "validation"))
    return world_size() == 1 and pictures * 4 * math.prod(model.vision.feature_shape) <= MOST_BYTES  # float32


def keep_for_test(model: ClinicalVLM, config: Config, splits: Mapping[str, CaseDataset]) -> None:
    """Cache the features of training and validation after the last step: fits, scores and retrieval read them again.

    Where `are_kept_for_test` says no, each of these reads the pictures itself.
    """
    learned = [splits[name] for name in ("train", "validation") if splits[name].features is None]
    if are_kept_for_test(model, splits):
        cache_features(model, learned, config.evaluation.batch_size, config.train.workers)


@torch.no_grad()
def cache_features(model: ClinicalVLM, datasets: Sequence[CaseDataset], batch_size: int, workers: int = 0) -> None:
    """Compute and cache the features of all images of these datasets, of an encoder that does not change any more.

    Also finds blank images. `workers` processes read the images. Raises `UserError` for an unreadable image.
    """
    for dataset in datasets:
        images = image_counts(dataset.rows)
        kept = new_array((int(images.sum()), *model.vision.feature_shape))
        loader = torch.utils.data.DataLoader(
            dataset.plain(), batch_size, num_workers=workers, collate_fn=_pictures_of, shuffle=False
        )
        counts: list[int] = []
        roles: list[StudyPicture] = []
        for pixels, of_batch, of_cases in progress(loader, "features of the images"):
            if len(pixels):
                with model.autocast():
                    found = model.vision.features(pixels.to(model.device)).float().cpu().numpy()
                kept[len(roles) : len(roles) + len(found)] = found
            roles += roles_of(of_batch.numpy(), model.spec.study)
            counts += of_cases
        whole = np.array(counts, np.int64) == np.minimum(images, model.spec.study_images)
        dataset.mark_images(whole)
        dataset.find_blank(np.flatnonzero(~whole).tolist())
        log_rank0(*blank_images(dataset, len(roles)))
        dataset.features = StudyFeatures(kept, np.cumsum([0, *counts]), roles)


def blank_images(dataset: CaseDataset, shown: int) -> list[str]:
    """Format a warning on blank images; `shown` is the number of the others."""
    blank = sorted(map(image_label, dataset.blank))
    return [f"warning: {blank_notice(len(blank), len(blank) + shown, blank[0])}"] if blank else []


def _pictures_of(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the pixels of all images, their roles (M × 3), and how many each case has."""
    shown = [example for example in batch if example["has_image"]]
    pixels, roles = (torch.cat([e[name] for e in shown]) if shown else torch.empty(0, 3)
                     for name in ("pixel_values", "image_roles"))  # fmt: skip
    return pixels, roles, [len(example["pixel_values"]) * example["has_image"] for example in batch]
