"""Define every option of a job with its unit, meaning and default; defaults are set nowhere else.

A YAML file in `configs/` mirrors these dataclasses one to one; `vlm.config.parsing` reads it and applies overrides.
"""

from dataclasses import dataclass, field

from vlm.config.augment import AugmentConfig, DropoutConfig
from vlm.config.data import (
    ChexpertConfig,
    CovidCxrConfig,
    DataConfig,
    MimicCxrConfig,
    PhantomConfig,
    SectionConfig,
    Source,
    SourceConfig,
    SplitConfig,
    StudyImageConfig,
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
from vlm.config.over_time import MeasurementsConfig, SeriesColumnConfig
from vlm.config.signal_options import SignalColumnConfig, SignalConfig
from vlm.config.training import (
    EvaluationConfig,
    LossConfig,
    OperatingPointConfig,
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
    "MeasurementsConfig",
    "MimicCxrConfig",
    "ModelConfig",
    "OperatingPointConfig",
    "PhantomConfig",
    "PromptConfig",
    "RunConfig",
    "SectionConfig",
    "SeriesColumnConfig",
    "SignalColumnConfig",
    "SignalConfig",
    "Source",
    "SourceConfig",
    "SplitConfig",
    "StudyImageConfig",
    "TableConfig",
    "TrainConfig",
    "VisionConfig",
    "VitalConfig",
    "VitalsConfig",
]


@dataclass(frozen=True)
class Config:
    """All options of a job."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name and folder of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    """Tables, images, vitals, labels, split."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Parts of the model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Joint loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimizer, schedule, checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Test at the end of a run."""
