"""Expect what each phase of a run costs, for the time left that its bar shows.

The costs are seconds of the demo on two CPU cores, and elsewhere shares alone: the bar carries on the speed it sees.
"""

from collections.abc import Mapping

import numpy as np

from vlm.config import Config
from vlm.data.dataset import CaseDataset
from vlm.data.study import image_counts
from vlm.evaluation.drafting import wanted_arms
from vlm.evaluation.fluency import MOST_CASES
from vlm.evaluation.split_measures import MOST_CASES as MOST_SCORED
from vlm.inference.features import choose_features
from vlm.progress import Phase
from vlm.reliability.familiarity import MOST_PICTURES

ENCODE, LEARN_IMAGE = 0.026, 0.038
"""An image: encoded, and in a training step of the encoder; in one of a frozen encoder it is encoded alone."""
READ, LEARN_TEXT, DRAFT = 0.07, 0.15, 0.12
"""A report: scored, in a training step, and drafted."""
FLUENCY, MEASURE, FIGURES = 0.007, 0.08, 8.0
"""A text read by the base alone; a test case measured, with all intervals; figures and page."""


def expected_phases(
    config: Config, splits: Mapping[str, CaseDataset], steps: int, kept_for_test: bool = True
) -> list[Phase]:
    """List the phases of a run from the first scores on, by the titles of their loops.

    `splits` are train, validation and test; `steps` is the last step of the training. `kept_for_test` says that the
    features of the images are kept after it, too.
    """
    cases = {name: len(split) for name, split in splits.items()}
    images = {name: len(split) * _images(split) for name, split in splits.items()}
    kept, options, tested = choose_features(config).value, config.evaluation, cases["test"]
    later = 0 if kept or kept_for_test else ENCODE  # of an image, each time that it is read after the training
    encode = {name: count * ENCODE for name, count in images.items()}
    learned = ("train", "validation")
    ablated = min(options.ablation_cases or tested, tested)
    arms = [arm.title for arm in wanted_arms(config, splits["test"])[1:]]
    return [
        Phase("scoring: untrained", (1, min(tested, MOST_SCORED) * (READ + ENCODE))),
        *(Phase("features of the images", (1, encode[name])) for name in learned if kept),
        training_phase(config, _images(splits["train"]), cases["validation"], _images(splits["validation"]), steps),
        *(Phase("features of the images", (1, encode[name])) for name in learned if kept_for_test and not kept),
        Phase("scoring: validation, head alone", (1, images["validation"] * later)),
        *(Phase("comparing pictures", (1, min(images[name], MOST_PICTURES) * later)) for name in learned),
        Phase("drafting: as given", (1, min(cases["validation"], options.sentence_cases) * DRAFT)),
        Phase("features of the images", (1, encode["test"])),
        Phase("scoring: test", (1, tested * READ)),
        Phase("drafting: as given", (1, tested * DRAFT)),
        *(
            Phase(f"{what}: {arm}", (1, ablated * cost))
            for arm in arms
            for what, cost in (("drafting", DRAFT), ("scoring", READ))
        ),
        *(Phase(f"scoring: {name} cases", (1, min(cases[name], MOST_SCORED) * READ)) for name in learned),
        Phase("fluency", (1, 2 * min(tested, MOST_CASES) * FLUENCY)),
        Phase("measures", (1, tested * MEASURE)),
        Phase("features for retrieval", (1, images["train"] * later)),
        Phase("figures and page", (1, FIGURES)),
    ]


def training_phase(config: Config, images: float, validated: int, their_images: float, steps: int) -> Phase:
    """Build the phase of all steps: the head-only ones, then those on text, each with its share of the validations.

    `images` and `their_images` are images a case of the training and of the `validated` cases.
    """
    train, loss = config.train, config.loss
    kept = choose_features(config).value
    learn = LEARN_IMAGE if config.model.vision.train else 0 if kept else ENCODE
    head = steps if loss.alpha == 1 else min(loss.head_only_steps, steps)
    often = validated / train.eval_steps  # cases validated a step
    image = train.batch_size * images * learn + often * their_images * (0 if kept else ENCODE)
    text = train.batch_size * LEARN_TEXT + often * READ
    return Phase("training step", (head, head * image), (steps - head, (steps - head) * (image + text)))


def _images(dataset: CaseDataset) -> float:
    """Count the images that the model reads of a case, on average."""
    counts = np.minimum(image_counts(dataset.rows), dataset.spec.study_images)
    return float(counts.mean()) if len(counts) else 0.0
