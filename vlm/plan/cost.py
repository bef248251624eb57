"""What a step, a draft and a pass over the data ask of a machine: products, bytes and launches, of shapes alone.

Sources of the terms: a product with n weights takes 2 n operations a token; backwards as much again for its inputs
and, where the weights train, for them (Kaplan et al., 2020). The weights of the language model are frozen, so a token
takes 4 n and not 6 n. Attention takes 4 T² of its width forwards and 8 T² backwards.
"""

import re
from dataclasses import dataclass

from vlm.config import Config
from vlm.plan.gpus import Machine
from vlm.plan.memory import TRAINED_BYTES, StepMemory, nf4_bytes
from vlm.plan.shapes import CNN, READS, Base

TEMPLATE_BEFORE, TEMPLATE_AFTER = 8, 9
"""Tokens of a chat template around the system message, and around the instruction."""
LAYER_CALLS, LORA_CALLS = 45, 5
"""Operations that one layer launches forwards, and each of its linear layers with LoRA beside."""
WORD_PASSES = 8
"""Times that each logit of a supervised token is read or written, forwards and backwards."""
ADAMW_PASSES = 20
"""Times that each trained value is read or written by clipping and AdamW."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a case as they are read; means."""

    fixed: float
    """Before the evidence, the same in every case: read once for all of a micro batch."""
    prompt: float
    """All before the report, the fixed ones among them."""
    report: float
    """Of the report in training."""
    padding: float = 0.0
    """Share of further tokens that only fill a batch."""

    @property
    def whole(self) -> float:
        """Prompt and report."""
        return self.prompt + self.report


@dataclass(frozen=True)
class Work:
    """What a piece of work asks of a machine."""

    products: float = 0.0
    """Operations in matrix products."""
    convolutions: float = 0.0
    """Operations in convolutions."""
    moved: float = 0.0
    """Bytes read and written by all that is no product."""
    calls: float = 0.0
    """Operations launched."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.products + other.products, self.convolutions + other.convolutions,
                    self.moved + other.moved, self.calls + other.calls)  # fmt: skip

    def __mul__(self, times: float) -> "Work":
        return Work(self.products * times, self.convolutions * times, self.moved * times, self.calls * times)

    def seconds(self, machine: Machine, overlapped: bool = False) -> float:
        """On a machine; `overlapped` where what is moved are the weights that the products read meanwhile."""
        products = self.products / (machine.flops * machine.mfu)
        products += self.convolutions / (machine.flops * machine.conv_share)
        speed = machine.mbu * (machine.bandwidth if overlapped else machine.passing)
        moved, calls = self.moved / speed, self.calls * machine.call_s
        busy = max(products, moved) if overlapped else products + moved
        return max(busy, calls) if machine.overlaps else busy + calls


@dataclass(frozen=True)
class Job:
    """A config with the shapes of its models and of its cases."""

    config: Config
    base: Base
    cnn: CNN
    tokens: Tokens

    # -------------------------------------------------------------------------------------- shapes

    @property
    def checkpointing(self) -> bool:
        return self.config.model.llm.activation_checkpointing

    @property
    def lora(self) -> int:
        """Trained values of LoRA."""
        llm = self.config.model.llm
        return self.base.layers * llm.lora_rank * sum(map(sum, self.base.adapted(llm.lora_targets).values()))

    @property
    def projectors(self) -> int:
        """Trained values of the projectors and the head, without biases and norms."""
        model, hidden = self.config.model, self.base.hidden
        image = self.cnn.channels * hidden + hidden**2
        tokens = (model.vitals.tokens if model.vitals.shown == "tokens" else 0) + 1  # and that of z, of the labels
        summary = self.cnn.channels * model.vision.summary_grid**2 * model.fusion.size
        return image + (tokens + 1) * hidden**2 + summary

    @property
    def trainable(self) -> int:
        """All that trains: LoRA, the projectors and the trained stages of the CNN."""
        return self.lora + self.projectors + sum(p for _, p, _ in self.cnn.trained(self.config.model.vision))

    @property
    def keeps_features(self) -> bool:
        """Whether the CNN sees each image once; see `vlm.training.features`."""
        augment = self.config.data.augment
        changes = any((augment.rotate, augment.shift, augment.scale, augment.contrast))
        return not self.config.model.vision.train and not changes

    def packed(self, machine: Machine) -> bool:
        llm = self.config.model.llm
        return llm.quantization == "nf4" and (llm.unpack == "never" or (llm.unpack == "auto" and machine.packed))

    # ------------------------------------------------------------------------------------ training

    def read_tokens(self, cases: int) -> float:
        """Tokens that the layers read of a micro batch: what all share once, and the padding."""
        shares = not (self.checkpointing or self.config.model.llm.lora_dropout) and cases > 1
        fixed = self.tokens.fixed if shares else 0.0
        return fixed + cases * (self.tokens.whole * (1 + self.tokens.padding) - fixed)

    def trunk(self, cases: int, machine: Machine) -> Work:
        """Forward and backward pass of a micro batch through the layers of the language model."""
        base, read, size = self.base, self.read_tokens(cases), machine.value_bytes
        passes = 3 if self.checkpointing else 2  # forward, backward to the inputs, and forward again
        length = self.tokens.whole * (1 + self.tokens.padding)
        products = 2 * passes * base.linear * read
        products += 2 * (passes + 1) * self.lora * read  # these train: backwards to their weights as well
        products += 4 * (passes + 1) * base.layers * base.attention * read * length  # backwards twice as much
        moved = size * base.layers * read * self._passed_values() * (4 / 3 if self.checkpointing else 1)
        adapted = len(base.adapted(self.config.model.llm.lora_targets))
        calls = (passes + 1) * base.layers * (LAYER_CALLS + LORA_CALLS * adapted)
        return Work(products, moved=moved + passes * self.unpacking(machine), calls=calls)

    def _passed_values(self) -> float:
        """Values that all but the products read and write for a token in a layer, forwards and backwards.

        Counted from Transformers' Llama, operation by operation: norms, rotation, residuals, gates, and the sums of
        gradients where a value goes several ways.
        """
        base, adapted = self.base, self.base.adapted(self.config.model.llm.lora_targets)
        own = 61 * base.hidden + 39 * base.attention + 27 * base.keys + 14 * base.intermediate
        return own + sum(3 * inputs + 7 * outputs for inputs, outputs in adapted.values())

    def unpacking(self, machine: Machine) -> float:
        """Bytes of one pass over packed weights: read in 4 bits, written and read again in the compute precision."""
        if not self.packed(machine):
            return 0.0
        return self.base.linear * (nf4_bytes(self.config.model.llm.double_quantization) + 2 * machine.value_bytes)

    def words(self, cases: int, machine: Machine) -> Work:
        """The vocabulary, on the supervised tokens alone."""
        supervised = cases * self.tokens.report
        logits = self.base.vocabulary * supervised
        return Work(4 * self.base.hidden * logits, moved=WORD_PASSES * machine.value_bytes * logits, calls=30)

    def image(self, images: float, machine: Machine, learns: bool = True) -> Work:
        """Forward pass of the CNN, and backward through the stages that train."""
        scale = (self.config.data.image_size / 224) ** 2
        operations = 2 * sum(products for products, _, _ in self.cnn.stages)
        if learns:
            operations += 4 * sum(products for products, _, _ in self.cnn.trained(self.config.model.vision))
        return Work(convolutions=images * scale * operations, calls=300)

    def evidence(self, cases: int) -> Work:
        """Projectors and head, forward and backward."""
        hidden, grid = self.base.hidden, self.config.model.vision.grid**2
        image = (self.cnn.channels * hidden + hidden**2) * grid
        return Work(6 * cases * (image + self.projectors), calls=300)

    def micro_batch(self, cases: int, machine: Machine, text: bool = True) -> Work:
        """One micro batch of training; without `text` as in the head-only steps."""
        work = self.evidence(cases)
        if not self.keeps_features:
            work += self.image(cases, machine)
        return work + self.trunk(cases, machine) + self.words(cases, machine) if text else work

    def update(self) -> Work:
        """Clipping and AdamW, once a step; in fp32."""
        return Work(moved=4 * ADAMW_PASSES * self.trainable, calls=100)

    # -------------------------------------------------------------------------------------- memory

    def memory(self, machine: Machine) -> StepMemory:
        """Bytes of a step on one device, as the dry run measures them on a real model."""
        size, llm = machine.value_bytes, self.config.model.llm
        linear = self.base.linear * (nf4_bytes(llm.double_quantization) if self.packed(machine) else size)
        own = 4 * (self.lora + self.projectors + self.cnn.parameters)
        largest = max(inputs * outputs for inputs, outputs in self.base.products.values())
        fixed = size * largest if self.packed(machine) else 0.0
        weights = linear + size * (self.base.parameters - self.base.linear) + own
        return StepMemory(weights, TRAINED_BYTES * self.trainable, fixed, self.case_memory(machine))

    def case_memory(self, machine: Machine) -> float:
        """Bytes that the backward pass keeps of one case."""
        scale = (self.config.data.image_size / 224) ** 2
        outputs = 0 if self.keeps_features else sum(n for _, _, n in self.cnn.trained(self.config.model.vision))
        kept = self.layer_memory(machine)
        whole = kept + machine.value_bytes * self.base.hidden * self.base.layers  # only the layers' inputs, and one
        layers = whole if self.checkpointing else kept * self.base.layers
        length = self.tokens.whole * (1 + self.tokens.padding)
        return length * layers + 2 * 4 * scale * outputs  # a convolution's output, and what its norm makes of it

    def layer_memory(self, machine: Machine) -> float:
        """Bytes that one layer keeps of a token: norms in fp32; what attention, gates and LoRA read as it comes."""
        base, size = self.base, machine.value_bytes
        adapted = base.adapted(self.config.model.llm.lora_targets)
        read = {READS[name]: inputs for name, (inputs, _) in adapted.items()}
        values = 2 * base.attention + 2 * base.keys + 3 * base.intermediate + sum(read.values())
        return 2 * 4 * base.hidden + size * values

    # ------------------------------------------------------------------------------------ drafting

    def prompt_reading(self, cases: int, machine: Machine) -> Work:
        """The prompts of a batch through the CNN and the layers, up to the first word."""
        base, length = self.base, self.tokens.prompt - self.tokens.fixed  # the fixed words are read once for all
        products = 2 * base.linear * length * cases + 2 * base.vocabulary * base.hidden * cases
        products += 4 * base.layers * base.attention * length * self.tokens.prompt * cases
        moved = machine.value_bytes * base.layers * cases * length * self._passed_values() / 3
        work = Work(products, moved=moved + self.unpacking(machine), calls=base.layers * LAYER_CALLS)
        return work + self.image(cases, machine, learns=False) + self.evidence(cases) * (1 / 3)

    def word(self, cases: int, written: float, machine: Machine, packed: bool) -> Work:
        """One further word of each case, after `written` of them: all weights and all keys are read."""
        base, size = self.base, machine.value_bytes
        vocabulary = base.vocabulary * base.hidden
        weights = size * vocabulary + (self.unpacking(machine) if packed else size * base.linear)
        context = self.tokens.prompt + written
        keys = cases * context * self.key_bytes(machine)
        products = 2 * cases * (base.linear + vocabulary + 2 * base.layers * base.attention * context)
        return Work(products, moved=weights + keys, calls=base.layers * LAYER_CALLS)

    def key_bytes(self, machine: Machine) -> float:
        """Keys and values of one token in all layers."""
        return 2 * self.base.layers * self.base.keys * machine.value_bytes


def guessed_tokens(config: Config, report: float, padding: float) -> Tokens:
    """Tokens of a prompt, guessed from the words of the config: a tokenizer is not needed for a plan."""
    prompt, model = config.model.prompt, config.model
    vitals = model.vitals.tokens if model.vitals.shown == "tokens" else 0
    evidence = model.vision.grid**2 + vitals + model.fusion.z_token + model.fusion.label_token
    before = TEMPLATE_BEFORE + _words(prompt.system)
    return Tokens(before, before + evidence + _words(prompt.instruction) + TEMPLATE_AFTER, report, padding)


def _words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))
