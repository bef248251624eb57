"""A plan in Markdown: one plan as a list of its terms, several as a row each."""

from collections.abc import Iterable, Sequence

from vlm.plan.cost import Job
from vlm.plan.gpus import Machine
from vlm.plan.plan import Plan
from vlm.plan.terms import Terms

COLUMNS = (
    "base", "GPU", "studies", "training", "GPUs", "GPU hours", "wall", "memory a GPU", "drafting", "GPUs",
    "GPU hours", "images", "read", "sent",
)  # fmt: skip


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def plan_lines(plan: Plan, job: Job, machine: Machine, terms: Terms) -> list[str]:
    """All terms of one plan."""
    training, drafting, data, tokens = plan.training, plan.drafting, plan.data, job.tokens
    fits = "fits" if training.fits else "DOES NOT FIT"
    rows = [
        ("cases", f"{number(plan.studies)} studies, {plan.epochs:g} epochs, {tokens.prompt:.0f} tokens of prompt, "
                  f"{tokens.report:.0f} of report"),
        ("trains", f"{number(plan.trainable)} of {number(job.base.parameters + plan.trainable)} parameters"),
        ("training", f"{training.engine}: {training.reason}"),
        ("memory", f"{training.memory_gb:.1f} GB of {machine.memory / 1e9:.0f} a device, {training.micro_batch} cases "
                   f"at once: {fits}"),
        ("time", f"{hours(training.wall_hours)} on {training.gpus:,} × {machine.name}, "
                 f"{number(training.gpu_hours)} GPU hours, {training.step_s:.3g} s a step"),
        ("readers", f"{training.reader_cores:.1f} CPU cores keep a device fed"),
        ("drafting", f"{drafting.engine}: {drafting.reason}"),
        ("a draft each", f"{hours(drafting.wall_hours)} on {drafting.gpus:,} × {machine.name}, "
                         f"{number(drafting.gpu_hours)} GPU hours (PyTorch {_or_no(drafting.pytorch_gpu_hours)}, "
                         f"vLLM {_or_no(drafting.vllm_gpu_hours)})"),
        ("storage", f"images {size(data.images_gb)}, kept features {size(data.features_gb)}, checkpoints "
                    f"{size(data.checkpoints_gb)}, adapter {size(data.adapter_gb)}, drafts {size(data.drafts_gb)}"),
        ("network", f"images read {size(data.read_gb)}, between devices {size(training.sent_gb)}"),
        ("opened", f"{number(data.loose_reads)} loose files (from a store {hours(data.loose_hours)}) or "
                   f"{number(data.packed_reads)} shards"),
        ("assumed", f"{machine.mfu:.0%} of {machine.flops / 1e12:.3g} TFLOP/s in products, {machine.mbu:.0%} of "
                    f"{machine.bandwidth / 1e9:,.0f} GB/s, {terms.study_bytes / 1e3:.0f} kB and "
                    f"{1e3 * terms.decode_s:.0f} ms of decoding a study"),
        *(("note", note) for note in plan.notes),
    ]  # fmt: skip
    return table(rows, (f"{plan.base} on {plan.gpu}", ""))


def many_lines(plans: Iterable[Plan]) -> list[str]:
    """One row a plan."""
    return table((_row(plan) for plan in plans), COLUMNS)


def _row(plan: Plan) -> list[str]:
    training, drafting, data = plan.training, plan.drafting, plan.data
    return [
        plan.base, plan.gpu, number(plan.studies), training.engine, f"{training.gpus:,}", number(training.gpu_hours),
        hours(training.wall_hours), f"{training.memory_gb:.1f} GB", drafting.engine, f"{drafting.gpus:,}",
        number(drafting.gpu_hours), size(data.images_gb), size(data.read_gb), size(training.sent_gb),
    ]  # fmt: skip


def _or_no(hours: float) -> str:
    return number(hours) if hours else "does not fit"


def number(value: float) -> str:
    """Three figures, in words that are read at a glance."""
    for unit, word in ((1e9, " × 10⁹"), (1e6, " × 10⁶")):
        if value >= unit:
            return f"{value / unit:.3g}{word}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def hours(value: float) -> str:
    """A time in its natural unit."""
    units = ((24 * 365, "years"), (24, "days"), (1, "h"), (1 / 60, "min"))
    size, word = next((unit for unit in units if value >= unit[0]), (1 / 3600, "s"))
    return f"{value / size:,.3g} {word}"


def size(gb: float) -> str:
    """Bytes in the unit of ten that suits them."""
    units = ((1e9, "EB"), (1e6, "PB"), (1e3, "TB"), (1, "GB"), (1e-3, "MB"))
    unit, word = next((unit for unit in units if gb >= unit[0]), (1e-3, "MB"))
    return f"{gb / unit:,.3g} {word}"
