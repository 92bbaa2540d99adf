"""The run configuration: schema, rules over the whole, files. No torch.

The rules are imported with the schema, so that a `RunConfig` built in Python is checked like one from a file.
"""

from agentrl.config import checks as checks
from agentrl.config.cluster import OpenRLHFConfig
from agentrl.config.monitors import MonitorsConfig
from agentrl.config.sampling import VLLMConfig
from agentrl.config.schema import (
    AlgorithmConfig,
    CurriculumConfig,
    DataConfig,
    EnvConfig,
    EnvEntry,
    EvalConfig,
    GuardConfig,
    LLDSConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    NTHRConfig,
    OptimConfig,
    RetrieverConfig,
    RolloutConfig,
    RunConfig,
    TinyModelConfig,
    TrainConfig,
    WarmStartConfig,
    WorldConfig,
)

__all__ = [
    "AlgorithmConfig",
    "CurriculumConfig",
    "DataConfig",
    "EnvConfig",
    "EnvEntry",
    "EvalConfig",
    "GuardConfig",
    "LLDSConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "MonitorsConfig",
    "NTHRConfig",
    "OpenRLHFConfig",
    "OptimConfig",
    "RetrieverConfig",
    "RolloutConfig",
    "RunConfig",
    "TinyModelConfig",
    "TrainConfig",
    "VLLMConfig",
    "WarmStartConfig",
    "WorldConfig",
]
