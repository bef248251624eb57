"""Choose the micro batch: as many cases in one pass as the GPU holds."""

from collections.abc import Callable

import torch
from accelerate.utils import find_executable_batch_size

from vlm.config import TrainConfig
from vlm.data.collate import Batch, Collator, to_device
from vlm.data.dataset import CaseDataset
from vlm.data.study import image_counts
from vlm.device import Choice
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM

ON_A_CPU = 8
"""Micro batch on a CPU, where larger ones save no time."""


def choose_micro_batch(
    model: ClinicalVLM, train: TrainConfig, batch_of: Callable[[int], Batch], processes: int = 1
) -> Choice[int]:
    """Choose `train.micro_batch_size`: the number in the config, or for `auto` the largest that fits.

    `batch_of(n)` makes n copies of the longest case. From all cases of a process downwards, each divisor is tried in a
    forward and backward pass beside the optimizer's state; the processes then take the smallest of their results.
    Raises `UserError` if a single case does not fit.
    """
    if train.micro_batch_size != "auto":
        return Choice(int(train.micro_batch_size), "set by train.micro_batch_size")
    sizes = divisors(train.batch_size // processes)
    if on_cpu(model):
        return Choice(max(size for size in sizes if size <= ON_A_CPU), "on a CPU larger ones save no time")
    fits = largest_fit(model, batch_of, sizes)
    if processes > 1:
        result = torch.tensor(fits, device=model.device)
        torch.distributed.all_reduce(result, torch.distributed.ReduceOp.MIN)
        fits = int(result)
    if not fits:
        raise UserError("train.micro_batch_size: one case of the longest report does not fit; try a smaller base")
    return Choice(fits, "the largest that fits, tried with the longest report")


def on_cpu(model: ClinicalVLM) -> bool:
    """Check whether the model is on a CPU, whose memory ends in a kill and not in an error."""
    return model.device.type == "cpu"


def largest_fit(model: ClinicalVLM, batch_of: Callable[[int], Batch], sizes: list[int]) -> int:
    """Find the largest of `sizes` (ascending) whose step fits into memory; 0 if none does."""
    smaller = list(sizes)

    def next_smaller() -> int:
        model.zero_grad(set_to_none=True)
        smaller.pop()
        return smaller[-1] if smaller else 0

    def fits(batch_size: int) -> int:
        trained = list(model.trainable_parameters().values())
        states = [torch.empty_like(value, dtype=torch.float32) for value in trained for _ in "mv"]  # AdamW's two
        one_step(model, batch_of(batch_size))
        del states
        return batch_size

    training = model.training
    try:
        model.train()
        # Not as a decorator: then early Accelerate forgets `next_smaller`, and halves to what is no divisor.
        return int(find_executable_batch_size(fits, sizes[-1], next_smaller)())
    except RuntimeError as error:
        if "No executable batch size" in str(error):
            return 0
        raise
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def longest_cases(model: ClinicalVLM, dataset: CaseDataset) -> Callable[[int], Batch]:
    """Return a function that builds a batch of N copies of the longest training report with the most images."""
    collate, plain = Collator(model.prompt), dataset.plain()
    example, counts = plain[int(dataset.report_lengths.argmax())], image_counts(dataset.rows)
    if counts.max() > 1:
        shown = plain[int(counts.argmax())]
        example |= {name: shown[name] for name in ("pixel_values", "has_image", "image_roles")}
    return lambda cases: collate([example] * cases)


def one_step(model: ClinicalVLM, batch: Batch) -> None:
    """Run one forward and backward pass of both losses on the model's device."""
    with model.autocast():
        loss = model(**to_device(batch, model.device), alpha=0.5).loss
    loss.backward()


def divisors(number: int) -> list[int]:
    """List the divisors of a number, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]
