"""Estimate on paper what a config takes on a GPU: hours of training and drafting, memory, and how many devices.

    python -m benchmarks.plan --config configs/single_gpu.yaml --studies 1e6 --base 8B 70B --gpu A100-80 H100

No figure of it was measured on a GPU; `train_lora.py --dry-run` measures the memory of a step. A product with n weights
takes 2 n operations a token, backwards as much again for its inputs and, where the weights train, for them (Kaplan et
al., 2020): a token takes 4 n of frozen weights and not 6 n. Arguments that are not its own go to the config.
"""

import argparse
import math
import re
from dataclasses import astuple, dataclass

from benchmarks.machine import micro_batch
from benchmarks.plan_inputs import GPU, GPUS, PRESETS, Base, Stage, base_of, count_cnn
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.errors import UserError, run_program
from vlm.training.memory import CUDA_CONTEXT, TRAINED_BYTES, StepMemory, packed_bytes

MFU, ATTENTION_MFU, MBU, LAUNCH_S = 0.5, 0.2, 0.7, 1e-5
"""Assumed: shares of the published peak in products, in attention and of the memory's bandwidth; seconds a launch."""
USABLE_MEMORY_FRACTION, PADDING = 0.92, 0.2
"""Share of a device's memory that tensors can fill, and share of further tokens that only fill a batch."""
TEMPLATE_BEFORE, TEMPLATE_AFTER = 8, 9
"""Tokens of a chat template around the system message, and around the instruction."""
CONV_PASSES, CONV_PASSES_BACK, LOGIT_PASSES, ADAMW_PASSES = 6, 10, 8, 20
"""Times that an output of a convolution, a supervised logit and a trained value are read or written in a step."""
LOGIT_BYTES = 12
"""Bytes held of each supervised logit at once: itself, its log-probability and its gradient."""
LAYER_CALLS, LORA_CALLS = 45, 5
"""Operations that a layer launches forwards, and each of its linear layers with LoRA beside."""
READS = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "o_proj": "heads", "gate_proj": "y", "up_proj": "y",
         "down_proj": "gated"}  # fmt: skip
"""Which linear layers read the same values: these are kept once for the backward pass."""


@dataclass(frozen=True)
class Tokens:
    """Mean tokens of a case: before the evidence (alike in all cases), before the report, and of the report."""

    fixed: float
    prompt: float
    report: float


def guess_tokens(config: Config, report: float) -> Tokens:
    """Guess the tokens of a prompt from the words of the config, without a tokenizer."""
    prompt, model = config.model.prompt, config.model
    system, instruction = (len(re.findall(r"\w+|[^\w\s]", text)) for text in (prompt.system, prompt.instruction))
    evidence = model.vision.grid**2 + model.vitals.tokens + model.fusion.z_token + model.fusion.label_token
    return Tokens(TEMPLATE_BEFORE + system, TEMPLATE_BEFORE + system + evidence + instruction + TEMPLATE_AFTER, report)


@dataclass(frozen=True)
class Work:
    """Operations in products and in attention, bytes moved by the rest, bytes of weights read, launches."""

    products: float = 0.0
    attention: float = 0.0
    moved: float = 0.0
    weights: float = 0.0
    calls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def seconds(self, gpu: GPU) -> float:
        """Time on a GPU, which launches ahead of its work."""
        products = (self.products / MFU + self.attention / ATTENTION_MFU) / gpu.flops
        return max(products + (self.moved + self.weights) / gpu.bandwidth / MBU, self.calls * LAUNCH_S)


@dataclass(frozen=True)
class Job:
    """A config with the shapes of its models and of its cases, on a GPU."""

    config: Config
    base: Base
    channels: int
    stages: tuple[Stage, ...]
    tokens: Tokens
    gpu: GPU

    @property
    def adapted(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear layers that carry LoRA, by name."""
        return self.base.adapted(self.config.model.llm.lora_targets)

    @property
    def lora(self) -> int:
        """Trained values of LoRA."""
        return self.base.layers * self.config.model.llm.lora_rank * sum(map(sum, self.adapted.values()))

    @property
    def projectors(self) -> int:
        """Trained values of the projectors and the head, without biases and norms."""
        model, hidden = self.config.model, self.base.hidden
        summary = self.channels * model.vision.summary_grid**2 * model.fusion.size
        width = model.projector_size or hidden
        return self.channels * width + (model.vitals.tokens + 3) * width * hidden + summary

    @property
    def trained_stages(self) -> tuple[Stage, ...]:
        """Stages of the CNN that learn."""
        vision = self.config.model.vision
        return self.stages[vision.frozen_stages :] if vision.train else ()

    @property
    def trainable(self) -> int:
        """Values that train: LoRA, the projectors and the trained stages of the CNN."""
        return self.lora + self.projectors + sum(parameters for _, parameters, _ in self.trained_stages)

    # ------------------------------------------------------------------------------------ training

    @property
    def shares_prefix(self) -> bool:
        """Whether the fixed words of a micro batch are read once; see `vlm.model.decoder`."""
        llm = self.config.model.llm
        return not (llm.activation_checkpointing or llm.lora_dropout)

    def layers(self, cases: int) -> Work:
        """Forward and backward pass of a micro batch through the layers of the language model."""
        base, tokens, again = self.base, self.tokens, self.config.model.llm.activation_checkpointing
        length = (tokens.prompt + tokens.report) * (1 + PADDING)
        fixed = tokens.fixed if self.shares_prefix and cases > 1 else 0.0
        read, passes = fixed + cases * (length - fixed), 3 if again else 2
        products = 2 * read * (passes * base.linear + (passes + 1) * self.lora)
        attention = 4 * (passes + 1) * base.layers * base.attention * read * length
        moved = self.gpu.value_bytes * base.layers * read * self.passed_values() * (4 / 3 if again else 1)
        calls = (1 + (fixed > 0)) * (passes + 1) * base.layers * (LAYER_CALLS + LORA_CALLS * len(self.adapted))
        return Work(products, attention, moved, (1 + (fixed > 0)) * passes * self.layer_weights(), calls)

    def passed_values(self) -> float:
        """Values that all but the products read and write for a token in a layer; counted from Transformers' Llama."""
        base = self.base
        own = 61 * base.hidden + 39 * base.attention + 27 * base.keys + 14 * base.intermediate
        return own + sum(6 * inputs + 10 * outputs for inputs, outputs in self.adapted.values())

    def layer_weights(self) -> float:
        """Bytes of one pass over the layers' weights; 4-bit ones are dequantised at each use."""
        return self.base.linear * (2 * self.gpu.value_bytes * self.packed + self.weight_bytes)

    @property
    def packed(self) -> bool:
        """Whether the base is held quantised."""
        return self.config.model.llm.quantization != "none"

    @property
    def weight_bytes(self) -> float:
        """Bytes of a weight of the linear layers."""
        return packed_bytes(self.config.model.llm) if self.packed else self.gpu.value_bytes

    def image(self, images: float, learns: bool = True) -> Work:
        """Forward pass of the CNN, and backward through the stages that train."""
        trained = self.trained_stages if learns else ()
        products = 2 * sum(n for n, _, _ in self.stages) + 4 * sum(n for n, _, _ in trained)
        values = CONV_PASSES * sum(n for *_, n in self.stages) + CONV_PASSES_BACK * sum(n for *_, n in trained)
        return Work(images * products, moved=images * self.gpu.value_bytes * values, calls=300)

    def micro_batch(self, cases: int) -> Work:
        """One micro batch: CNN, projectors and head, layers, and the vocabulary on the supervised tokens alone."""
        base, hidden = self.base, self.base.hidden
        logits = base.vocabulary * cases * self.tokens.report
        words = Work(4 * hidden * logits, moved=LOGIT_PASSES * self.gpu.value_bytes * logits, calls=30)
        grid = (self.channels * hidden + hidden**2) * self.config.model.vision.grid**2
        evidence = Work(6 * cases * (grid + self.projectors), calls=300)
        return self.image(cases) + evidence + self.layers(cases) + words

    def step_seconds(self, micro: int, accumulated: int) -> float:
        """Seconds of an optimizer step on one device."""
        update = Work(moved=4 * ADAMW_PASSES * self.trainable, calls=100)
        return accumulated * self.micro_batch(micro).seconds(self.gpu) + update.seconds(self.gpu)

    # -------------------------------------------------------------------------------------- memory

    def memory(self) -> StepMemory:
        """Bytes of a step on one device, as the dry run measures them on a real model."""
        base, size = self.base, self.gpu.value_bytes
        own = 4 * (self.lora + self.projectors + sum(parameters for _, parameters, _ in self.stages))
        weights = base.linear * self.weight_bytes + size * (base.parameters - base.linear) + own
        largest = size * max(inputs * outputs for inputs, outputs in base.products.values()) * self.packed
        return StepMemory(weights, TRAINED_BYTES * self.trainable, largest, self.case_memory())

    def case_memory(self) -> float:
        """Bytes that the backward pass keeps of one case."""
        base, size = self.base, self.gpu.value_bytes
        fixed = self.tokens.fixed if self.shares_prefix else 0.0
        length = (self.tokens.prompt + self.tokens.report) * (1 + PADDING) - fixed
        read = {READS[name]: inputs for name, (inputs, _) in self.adapted.items()}
        values = 4 * base.attention + 3 * base.intermediate + sum(read.values())  # keys are repeated for each head
        layer = length * (8 * base.hidden + size * values) + 2 * size * base.attention * fixed  # norms in fp32
        again = self.config.model.llm.activation_checkpointing
        layers = layer + length * size * base.hidden * base.layers if again else layer * base.layers
        around = 5 * size * base.hidden * length
        images = 2 * 4 * sum(outputs for *_, outputs in self.trained_stages)
        return layers + around + LOGIT_BYTES * base.vocabulary * self.tokens.report + images

    def largest_micro_batch(self) -> int:
        """Cases, of train.micro_batch_size, that fit the GPU at once; 0 where one does not."""
        room, memory = USABLE_MEMORY_FRACTION * self.gpu.memory - CUDA_CONTEXT, self.memory()
        return next((n for n in range(micro_batch(self.config.train), 0, -1) if memory.peak(n) <= room), 0)

    # ------------------------------------------------------------------------------------ drafting

    def draft_seconds(self) -> float:
        """Seconds a study with `infer.py --input`, on one device: the prompts, then word by word."""
        base, size, tokens = self.base, self.gpu.value_bytes, self.tokens
        cases, words = self.config.evaluation.batch_size, self.tokens.report
        vocabulary, calls = base.vocabulary * base.hidden, base.layers * LAYER_CALLS
        length, passed = tokens.prompt - tokens.fixed, size * base.layers * self.passed_values() / 3
        prompt = Work(2 * cases * (base.linear * length + vocabulary), 4 * base.layers * base.attention * length
                      * tokens.prompt * cases, cases * length * passed, self.layer_weights(), calls)  # fmt: skip
        context = tokens.prompt + words / 2
        keys = 2 * base.layers * base.keys * size * cases * context
        word = Work(2 * cases * (base.linear + vocabulary), 4 * cases * base.layers * base.attention * context,
                    cases * (passed + 4 * size * base.vocabulary) + 2 * keys,
                    self.layer_weights() + size * vocabulary + keys, calls)  # fmt: skip
        reading = (prompt + self.image(cases, learns=False)).seconds(self.gpu)
        return (reading + words * word.seconds(self.gpu)) / cases


def plan(job: Job, name: str, studies: float, days: float) -> list[str]:
    """One row: GPU hours of training on as few devices as end in time, memory of one, GPU hours of a draft each."""
    train, micro = job.config.train, job.largest_micro_batch()
    start = [job.base.name, name, f"{studies:,.0f}"]
    if not micro:
        return [*start, "one case does not fit", "", f"{(job.memory().peak(1) + CUDA_CONTEXT) / 1e9:.1f} GB", ""]
    steps = studies * train.epochs / train.batch_size
    hours = steps * job.step_seconds(micro, math.ceil(train.batch_size / micro)) / 3600
    memory = (job.memory().peak(micro) + CUDA_CONTEXT) / 1e9
    drafts = studies * job.draft_seconds() / 3600
    return [*start, f"{hours:,.3g}", f"{math.ceil(hours / days / 24):,}", f"{memory:.1f} GB", f"{drafts:,.3g}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the job")
    parser.add_argument("--studies", type=float, nargs="+", default=[1e6], help="studies to train on, and to draft")
    parser.add_argument("--base", nargs="+", choices=list(PRESETS), help="in place of the config's base")
    parser.add_argument("--gpu", nargs="+", choices=list(GPUS), default=["H100"])
    parser.add_argument("--days", type=float, default=7.0, help="time in which training shall end (7)")
    parser.add_argument("--report_tokens", type=float, default=120, help="mean length of a report (120)")
    arguments, rest = parser.parse_known_args(argv)
    for name in ("studies", "days", "report_tokens"):
        value = getattr(arguments, name)
        if not 0 < (min(value) if isinstance(value, list) else value) < float("inf"):
            raise UserError(f"--{name}: must be more than 0")
    config, _ = parse_config(["--config", arguments.config, *rest])
    bases = [PRESETS[name] for name in arguments.base or []] or [base_of(config.model.llm)]
    cnn = count_cnn(config.model.vision, config.data.image_size)
    tokens = guess_tokens(config, arguments.report_tokens)
    header = ["base", "GPU", "studies", "GPU hours to train", "GPUs", "memory a GPU", "GPU hours to draft"]
    rows = [plan(Job(config, base, *cnn, tokens, GPUS[gpu]), gpu, studies, arguments.days)
            for base in bases for gpu in arguments.gpu for studies in arguments.studies]  # fmt: skip
    for row in [header, ["---"] * len(header), *rows]:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run_program(main)
