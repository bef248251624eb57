"""What a step, a draft and a pass over the data ask of a machine: products, bytes and launches, of shapes alone.

Sources of the terms: a product with n weights takes 2 n operations a token; backwards as much again for its inputs
and, where the weights train, for them (Kaplan et al., 2020). The weights of the language model are frozen, so a token
takes 4 n and not 6 n. Attention takes 4 T² of its width forwards and 8 T² backwards.
"""

import re
from dataclasses import astuple, dataclass

from vlm.config import Config
from vlm.plan.gpus import Machine
from vlm.plan.shapes import CNN, READS, Base
from vlm.training.memory import TRAINED_BYTES, StepMemory, nf4_bytes

TEMPLATE_BEFORE, TEMPLATE_AFTER = 8, 9
"""Tokens of a chat template around the system message, and around the instruction."""
CONV_PASSES, CONV_PASSES_BACK = 6, 10
"""Times that each output of a convolution is read or written on its way through norm and activation, and back."""
LAYER_CALLS, LORA_CALLS = 45, 5
"""Operations that one layer launches forwards, and each of its linear layers with LoRA beside."""
WORD_PASSES = 8
"""Times that each logit of a supervised token is read or written, forwards and backwards."""
WORD_BYTES = 12
"""Bytes that are held of each of them at once: logit, logarithm of its probability, gradient."""
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
    groups: int = 1
    """Passes through the layers for a micro batch: on a CPU cases of like length run together."""

    @property
    def whole(self) -> float:
        """Prompt and report."""
        return self.prompt + self.report


@dataclass(frozen=True)
class Work:
    """What a piece of work asks of a machine."""

    products: float = 0.0
    """Operations in matrix products and convolutions."""
    attention: float = 0.0
    """Operations in attention."""
    moved: float = 0.0
    """Bytes read and written by all that is no product."""
    large: float = 0.0
    """The same of large tensors: those of the CNN, and the logits."""
    weights: float = 0.0
    """Bytes of weights and keys that come from memory."""
    calls: float = 0.0
    """Operations launched."""

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(part * times for part in astuple(self)))

    def seconds(self, machine: Machine, drafts: bool = False) -> float:
        """On a machine; a GPU reads the weights of a draft's word while it multiplies."""
        products = (self.products / machine.mfu + self.attention / machine.attention) / machine.flops
        weights = self.weights / (machine.bandwidth * machine.mbu)
        moved = (self.moved / machine.passing + self.large / machine.large) / machine.mbu
        busy = moved + (max(products, weights) if drafts and machine.overlaps else products + weights)
        calls = self.calls * machine.call_s
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
        tokens = (model.vitals.tokens if model.vitals.injection == "tokens" else 0) + 1  # and that of z, of the labels
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
        packed = llm.dequantize == "never" or (llm.dequantize == "auto" and machine.packed)
        return llm.quantization == "nf4" and packed

    # ------------------------------------------------------------------------------------ training

    @property
    def shares(self) -> bool:
        """Whether the fixed words of a micro batch are read once; see `vlm.model.decoder`."""
        return not (self.checkpointing or self.config.model.llm.lora_dropout)

    def read_tokens(self, cases: int) -> float:
        """Tokens that the layers read of a micro batch: what all share once, and the padding."""
        fixed = self.tokens.fixed if self.shares and cases > 1 else 0.0
        return fixed + cases * (self.tokens.whole * (1 + self.tokens.padding) - fixed)

    def trunk(self, cases: int, machine: Machine) -> Work:
        """Forward and backward pass of a micro batch through the layers of the language model."""
        base, read, size = self.base, self.read_tokens(cases), machine.value_bytes
        passes = 3 if self.checkpointing else 2  # forward, backward to the inputs, and forward again
        groups = self.tokens.groups + (self.shares and cases > 1)
        length = self.tokens.whole * (1 + self.tokens.padding)
        products = 2 * passes * base.linear * read
        products += 2 * (passes + 1) * self.lora * read  # these train: backwards to their weights as well
        attention = 4 * (passes + 1) * base.layers * base.attention * read * length  # backwards twice as much
        moved = size * base.layers * read * self._passed_values() * (4 / 3 if self.checkpointing else 1)
        adapted = len(base.adapted(self.config.model.llm.lora_targets))
        calls = groups * (passes + 1) * base.layers * (LAYER_CALLS + LORA_CALLS * adapted)
        weights = groups * passes * self.layer_weights(machine)
        return Work(products, attention, moved, weights=weights, calls=calls)

    def _passed_values(self) -> float:
        """Values that all but the products read and write for a token in a layer, forwards and backwards.

        Counted from Transformers' Llama, operation by operation: norms, rotation, residuals, gates, and the sums of
        gradients where a value goes several ways. LoRA's own products are so narrow that they count as reading too.
        """
        base, adapted = self.base, self.base.adapted(self.config.model.llm.lora_targets)
        own = 61 * base.hidden + 39 * base.attention + 27 * base.keys + 14 * base.intermediate
        return own + sum(6 * inputs + 10 * outputs for inputs, outputs in adapted.values())

    def layer_weights(self, machine: Machine) -> float:
        """Bytes of one pass over the layers' weights.

        Packed ones are read in 4 bits, written and read again in the compute precision.
        """
        if not self.packed(machine):
            return self.base.linear * machine.value_bytes
        return self.base.linear * (nf4_bytes(self.config.model.llm.double_quantization) + 2 * machine.value_bytes)

    def words(self, cases: int, machine: Machine) -> Work:
        """The vocabulary, on the supervised tokens alone."""
        supervised = cases * self.tokens.report
        logits = self.base.vocabulary * supervised
        return Work(4 * self.base.hidden * logits, large=WORD_PASSES * machine.value_bytes * logits, calls=30)

    def image(self, images: float, machine: Machine, learns: bool = True) -> Work:
        """Forward pass of the CNN, and backward through the stages that train."""
        scale = images * (self.config.data.image_size / 224) ** 2
        trained = self.cnn.trained(self.config.model.vision) if learns else ()
        products = 2 * sum(n for n, _, _ in self.cnn.stages) + 4 * sum(n for n, _, _ in trained)
        values = CONV_PASSES * sum(n for _, _, n in self.cnn.stages) + CONV_PASSES_BACK * sum(n for _, _, n in trained)
        return Work(scale * products, large=scale * machine.value_bytes * values, calls=300)

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
        base, size, fixed = self.base, machine.value_bytes, self.tokens.fixed if self.shares else 0.0
        length = self.tokens.whole * (1 + self.tokens.padding) - fixed
        layer = length * self.layer_memory(machine) + 2 * size * base.attention * fixed  # every case has its own keys
        layers = layer + length * size * base.hidden * base.layers if self.checkpointing else layer * base.layers
        around = 5 * size * base.hidden * length  # what goes in, and comes out through the last norm
        logits = WORD_BYTES * base.vocabulary * self.tokens.report
        return layers + around + logits + self.image_memory()

    def image_memory(self) -> float:
        """Bytes that the CNN keeps of one image: each output of a convolution, and what its norm makes of it."""
        trained = () if self.keeps_features else self.cnn.trained(self.config.model.vision)
        return 2 * 4 * (self.config.data.image_size / 224) ** 2 * sum(outputs for _, _, outputs in trained)

    def layer_memory(self, machine: Machine) -> float:
        """Bytes that one layer keeps of a token: norms in fp32; what attention, gates and LoRA read as it comes."""
        base, size = self.base, machine.value_bytes
        adapted = base.adapted(self.config.model.llm.lora_targets)
        read = {READS[name]: inputs for name, (inputs, _) in adapted.items()}
        values = 4 * base.attention + 3 * base.intermediate + sum(read.values())  # keys are repeated for each head
        return 2 * 4 * base.hidden + size * values

    # ------------------------------------------------------------------------------------ drafting

    def prompt_reading(self, cases: int, machine: Machine) -> Work:
        """The prompts of a batch through the CNN and the layers, up to the first word."""
        base, length = self.base, self.tokens.prompt - self.tokens.fixed  # the fixed words are read once for all
        products = 2 * base.linear * length * cases + 2 * base.vocabulary * base.hidden * cases
        products += 4 * base.layers * base.attention * length * self.tokens.prompt * cases
        moved = machine.value_bytes * base.layers * cases * length * self._passed_values() / 3
        work = Work(products, moved=moved, weights=self.layer_weights(machine), calls=base.layers * LAYER_CALLS)
        return work + self.image(cases, machine, learns=False) + self.evidence(cases) * (1 / 3)

    def word(self, cases: int, written: float, machine: Machine, copies: bool = True) -> Work:
        """One further word of each case, after `written` of them: all weights are read, and all keys.

        PyTorch `copies` the keys for each word, to append to them; a server keeps them in pages.
        """
        base, size, context = self.base, machine.value_bytes, self.tokens.prompt + written
        vocabulary = base.vocabulary * base.hidden
        keys = cases * context * self.key_bytes(machine)
        products = 2 * cases * (base.linear + vocabulary + 2 * base.layers * base.attention * context)
        moved = size * cases * (base.layers * self._passed_values() / 3 + 4 * base.vocabulary) + 2 * keys * copies
        weights = self.layer_weights(machine) + size * vocabulary + keys
        return Work(products, moved=moved, weights=weights, calls=base.layers * LAYER_CALLS)

    def key_bytes(self, machine: Machine) -> float:
        """Keys and values of one token in all layers."""
        return 2 * self.base.layers * self.base.keys * machine.value_bytes


def guessed_tokens(config: Config, report: float, padding: float) -> Tokens:
    """Tokens of a prompt, guessed from the words of the config: a tokenizer is not needed for a plan."""
    prompt, model = config.model.prompt, config.model
    vitals = model.vitals.tokens if model.vitals.injection == "tokens" else 0
    evidence = model.vision.grid**2 + vitals + model.fusion.z_token + model.fusion.label_token
    before = TEMPLATE_BEFORE + _words(prompt.system)
    return Tokens(before, before + evidence + _words(prompt.instruction) + TEMPLATE_AFTER, report, padding)


def _words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))
