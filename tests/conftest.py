"""A tiny random language model, a tiny table of cases, and configs that use them: no network, seconds to train."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.host import SETTINGS

os.environ.update(SETTINGS)
os.environ["HF_HUB_OFFLINE"] = "1"  # before Transformers is imported: a test must never reach for the Hub

import cv2
import numpy as np
import pytest
import torch

from tests.forks import Forks
from vlm.config import (
    Config,
    DataConfig,
    DropoutConfig,
    EvaluationConfig,
    FusionConfig,
    LLMConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    SectionConfig,
    SplitConfig,
    TableConfig,
    TrainConfig,
    VisionConfig,
    VitalConfig,
    VitalsConfig,
)

LONGEST = ["test_end_to_end", "test_demo_gate", "test_quality", "test_training", "test_resuming", "test_kills",
           "test_processes", "test_durable", "test_self_test", "test_parts", "test_package", "test_hub",
           "test_notebooks"]  # fmt: skip
"""Files of minutes, of however few tests: they begin first, so that none is left to one worker at the end."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "No opacity in either lung.",
    "Patchy opacities in the left lower zone.",
    "Mild infiltration in the right upper zone.",
    "Glucose is elevated.",
    "Blood pressure is normal.",
    "No image was available.",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: the longest, then those of most tests; `--no-loadscope-reorder` keeps that order."""
    tests = Counter(item.path for item in items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.stem, len(LONGEST)), -tests[item.path], item.path))


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a two-layer Llama with random weights and a byte-level BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llm")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True, initializer_range=0.2,  # large enough that its words depend on the prompt
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def table_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own data: `cases.csv` of 24 cases of 20 patients, some without image, vitals, label or report."""
    root = tmp_path_factory.mktemp("table")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = ["case,patient,image,glucose,blood_pressure,sex,pathology,effusion,findings,split"]
    for number in range(24):
        image = f"{number}.png" if number % 8 != 5 else ""
        if image:
            picture = rng.integers(0, 256, (40, 48 if number % 2 else 40), dtype=np.uint8)
            cv2.imwrite(str(root / "images" / image), picture)
        glucose = f"{rng.normal(7, 2):.1f}" if number % 5 else ""
        label = "" if number % 7 == 3 else str(number % 2)
        report = "" if number % 6 == 4 else SENTENCES[number % 3]
        patient = number % 20  # the last four cases are second visits
        split = "train" if patient < 4 else ("test", "validation", "train", "train")[number % 4]
        lines.append(
            f"c{number},p{patient},{image},{glucose},{120 + number}/{70 + number},{'MF'[number % 2]},"
            f"{label},{(number // 3) % 2},{report},{split}"
        )
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root


def table_config(root: Path) -> DataConfig:
    """How `table_root` is described."""
    vitals = [
        VitalConfig("glucose", "mmol/L", ["glu"], plausible=[1, 50], reference=[3.9, 7.8]),
        VitalConfig("systolic", "mmHg", plausible=[40, 300], reference=[90, 139]),
        VitalConfig("diastolic", "mmHg", plausible=[20, 200]),
        VitalConfig("sex", categories=["F", "M"]),
    ]
    table = TableConfig(
        images="images", id="case", patient="patient", split="split", labels=["pathology", "effusion"], vitals=vitals,
        report=[SectionConfig("findings", ["image"], "No image was available.")],
    )  # fmt: skip
    return DataConfig(source="table", root=str(root), image_size=32, table=table, split=SplitConfig())


@pytest.fixture
def tiny_config(tiny_llm: str, table_root: Path, tmp_path: Path) -> Config:
    """A whole job on `table_root` that trains in a second."""
    return tiny_job(tiny_llm, table_root, tmp_path)


def tiny_job(tiny_llm: str, table_root: Path, folder: Path) -> Config:
    """That job, whose runs are under `folder`."""
    return Config(
        run=RunConfig(name="tiny", folder=str(folder / "runs")),
        data=replace(table_config(table_root), dropout=DropoutConfig(0.2, 0.2, 0.1)),
        model=tiny_model_config(tiny_llm),
        loss=LossConfig(alpha=0.4),
        train=TrainConfig(
            max_steps=4, batch_size=4, micro_batch_size=4, log_steps=1, eval_steps=2, warmup_steps=1, precision="fp32"
        ),  # fp32: what the tests compare must not depend on the CPU
        evaluation=EvaluationConfig(batch_size=4, max_new_tokens=8, bootstrap_draws=20),
    )


def tiny_model_config(tiny_llm: str) -> ModelConfig:
    """The smallest model of every part."""
    return ModelConfig(
        llm=LLMConfig(base=tiny_llm, lora_rank=2),
        vision=VisionConfig(name="test_efficientnet", weights="random", grid=2, summary_grid=1),
        vitals=VitalsConfig(tokens=2, bins=3),
        fusion=FusionConfig(size=8),
    )


@pytest.fixture
def tiny_model(tiny_config: Config):
    """A fresh model on the CPU for `tiny_config`."""
    from vlm.data.ingest.sources import load_cohort
    from vlm.training.run import build_model

    return public(build_model(tiny_config, load_cohort(tiny_config.data), torch.device("cpu"), torch.float32))


def public(model: Any) -> Any:
    """A model that was built for training, as the class that users load, which adds methods and no state."""
    from vlm import ClinicalVLM

    model.__class__ = ClinicalVLM
    return model


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter of the smallest model, untrained; for reading."""
    from vlm.adapter import save
    from vlm.data.ingest.sources import load_cohort
    from vlm.training.run import build_model

    config = Config(data=table_config(table_root), model=tiny_model_config(tiny_llm))
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    return save(model, tmp_path_factory.mktemp("tiny") / "adapter")


@pytest.fixture(scope="module")
def engine(tiny_adapter: Path):
    """An engine on `tiny_adapter`; of one module, since its tests may patch it."""
    from vlm.adapter import load
    from vlm.inference.engine import ReportEngine

    return ReportEngine(load(tiny_adapter))


@pytest.fixture(scope="module")
def adapter(tiny_adapter: Path):
    """What a server says of `tiny_adapter`."""
    from vlm.app.about import Adapter

    return Adapter.of(tiny_adapter)


@pytest.fixture
def tiny_batch(tiny_config: Config, tiny_model):
    """A training batch of six cases: with and without image, vitals, label and report."""
    from vlm.data.collate import Collator
    from vlm.data.ingest.sources import load_cohort
    from vlm.training.run import case_dataset

    config = replace(tiny_config, data=replace(tiny_config.data, dropout=DropoutConfig(0, 0, 0)))
    dataset = case_dataset(config, tiny_model.spec, load_cohort(config.data), "train")
    return Collator(tiny_model.prompt)([dataset[index] for index in range(6)])


def at_hand(name: str, table: str, variable: str) -> Path:
    """A real data set where it is at hand: the folder of an environment variable, or one beside the project."""
    project = Path(__file__).resolve().parent.parent
    here = [project / "data" / name, project.parent / "shared" / "data" / name]
    for place in [Path(os.environ.get(variable, "/nonexistent")), *here]:
        if (place / table).is_file():
            return place
    pytest.skip(f"the {name} is not at hand; set {variable} to its folder")


@pytest.fixture(scope="session")
def covid_root() -> Path:
    """The real COVID-19 collection."""
    return at_hand("covid-chestxray-dataset", "metadata.csv", "COVID_CXR_ROOT")


@pytest.fixture(scope="session")
def ham10000() -> Path:
    """Real dermatoscopic pictures with reports of facts."""
    return at_hand("ham10000", "cases.csv", "HAM10000_ROOT")


@pytest.fixture(scope="session")
def ptbxl() -> Path:
    """Real ECGs with their German reports."""
    return at_hand("ptbxl-sample", "cases.csv", "PTBXL_ROOT")


OF_THE_MOMENT = ("runtime", "per_second", "_per_s", "step_s", "data_wait", "memory_mib", "_rank", "train_loss")
"""Parts of the names in a log row that say how fast it went, what a process did, or are of one sitting."""


def steady(rows: list[dict]) -> list[dict]:
    """Log rows as every sitting on every number of processes must write them."""
    return [{k: v for k, v in row.items() if not any(word in k for word in OF_THE_MOMENT)} for row in rows]


def read_json(path: Path):
    """Shorthand."""
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts real runs of the programs, by one process or several, without the seconds of a Python start."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def restored_sigint() -> Iterator[None]:
    """As Python has it: a process that a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
