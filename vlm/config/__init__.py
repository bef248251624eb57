"""Define every option of a job with its unit, meaning and default; defaults are set nowhere else.

A YAML file in `configs/` mirrors these dataclasses one to one; `vlm.config.parsing` reads it and applies overrides.
"""

from dataclasses import dataclass, field

from vlm.config.data import (
    AugmentConfig,
    ChexpertConfig,
    CovidCxrConfig,
    DataConfig,
    DropoutConfig,
    MimicCxrConfig,
    PhantomConfig,
    SectionConfig,
    Source,
    SourceConfig,
    SplitConfig,
    TableConfig,
    VitalConfig,
)
from vlm.config.model import (
    FusionConfig,
    LLMConfig,
    ModelConfig,
    PromptConfig,
    VisionConfig,
    VitalsConfig,
)
from vlm.config.training import (
    EvaluationConfig,
    LossConfig,
    RunConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "ChexpertConfig",
    "Config",
    "CovidCxrConfig",
    "DataConfig",
    "DropoutConfig",
    "EvaluationConfig",
    "FusionConfig",
    "LLMConfig",
    "LossConfig",
    "MimicCxrConfig",
    "ModelConfig",
    "PhantomConfig",
    "PromptConfig",
    "RunConfig",
    "SectionConfig",
    "Source",
    "SourceConfig",
    "SplitConfig",
    "TableConfig",
    "TrainConfig",
    "VisionConfig",
    "VitalConfig",
    "VitalsConfig",
]


@dataclass(frozen=True)
class Config:
    """A whole job."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name and place of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    """Cases."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
