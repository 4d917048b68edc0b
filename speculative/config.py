"""The config of Snowflake's draft heads, for transformers. Import-light, no SGLang."""

from transformers import AutoConfig, PretrainedConfig


class MLPSpeculatorConfig(PretrainedConfig):
    """A draft head's config.json; `speculative.speculators.SpeculatorConfig` reads its fields."""

    model_type = "mlp_speculator"


def register() -> None:
    """Makes transformers' AutoConfig know the model type: SGLang reads the config of every draft. Idempotent."""
    AutoConfig.register(MLPSpeculatorConfig.model_type, MLPSpeculatorConfig, exist_ok=True)
