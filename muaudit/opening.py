"""Opens the models that a configuration names. Nothing of a family is imported until a model of it is asked for."""

from pathlib import Path

from muaudit.model_config import CausalLMConfig, ClassifierConfig, GuardedConfig, ModelConfig, RecordedConfig
from muaudit.models import Model


def family(config: ModelConfig, base: Path, *, numbers: bool = False) -> type:
    """The class of a configured model's family.

    Args:
        config: The model's table in audit.toml.
        base: The folder that its paths start from.
        numbers: Whether the task's outputs are numbers instead of classes.

    Returns:
        The class, which says what models of it can do.
    """
    if config.kind == "endpoint":
        from muaudit.models.endpoint import Endpoint, ScoringEndpoint

        return ScoringEndpoint if config.logprobs else Endpoint
    if config.kind == "recorded" and config.format == "logits":
        from muaudit.models.recorded_logits import RecordedLogits, RecordedPredictions

        return RecordedPredictions if numbers else RecordedLogits
    if config.kind == "recorded":
        from muaudit.models.recorded import Recorded

        return Recorded
    if config.kind == "population":
        from muaudit.models.population import Population

        return Population
    if isinstance(config, ClassifierConfig):
        from muaudit.models.opening import classifier_family

        return classifier_family(base / config.path, regressor=numbers)
    if config.kind == "diffusion":
        from muaudit.models.diffusion import diffusion_family

        return diffusion_family(base / config.path)
    if config.kind == "guarded":
        from muaudit.models.guarded import Guarded

        return Guarded
    from muaudit.models.causal_lm import CausalLM

    return CausalLM


def open_model(config: ModelConfig, base: Path, device: str, kept: Path, *, numbers: bool = False) -> Model:
    """Opens a configured model.

    Args:
        config: The model's table in audit.toml.
        base: The folder that its paths start from.
        device: A torch device name.
        kept: The audit's store, where an endpoint's answers go.
        numbers: Whether the task's outputs are numbers instead of classes.

    Returns:
        The model.

    Raises:
        ModelError: It cannot be opened safely.
        EnvironmentFault: The family's extra is not installed, or an endpoint's key is not in the environment.
    """
    if config.kind == "endpoint":
        from muaudit.models.endpoint import Endpoint, ScoringEndpoint

        return (ScoringEndpoint if config.logprobs else Endpoint).open(config, kept)
    if isinstance(config, RecordedConfig):
        return _open_recorded(config, base, numbers)
    if config.kind == "population":
        from muaudit.models.population import Population

        return Population.open(base / config.path)
    if isinstance(config, ClassifierConfig):
        from muaudit.models.opening import open_classifier

        return open_classifier(
            base / config.path,
            factory=config.factory,
            base=base,
            device=device,
            dtype=config.dtype,
            batch_size=config.batch_size,
            regressor=numbers,
        )
    if config.kind == "diffusion":
        from muaudit.models.diffusion import open_diffusion

        return open_diffusion(
            base / config.path, dtype=config.dtype, device=device, batch_size=config.batch_size,
            attention_slicing=config.attention_slicing,
        )  # fmt: skip
    return _open_language_model(config, base, device)


def _open_recorded(config: RecordedConfig, base: Path, numbers: bool) -> Model:
    if config.format == "logits":
        from muaudit.models.recorded_logits import RecordedLogits, RecordedPredictions

        return (RecordedPredictions if numbers else RecordedLogits).open(base / config.path)
    from muaudit.models.recorded import Recorded

    return Recorded.open(base / config.path, config.format)


def _open_language_model(config: CausalLMConfig | GuardedConfig, base: Path, device: str) -> Model:
    if config.kind == "guarded":
        from muaudit.models.guarded import Guarded

        return Guarded.open(
            base / config.path, dtype=config.dtype, device=device, device_map=config.device_map, batch_size=config.batch_size
        )
    from muaudit.models.causal_lm import CausalLM

    return CausalLM.open(
        base / config.path,
        base=None if config.base is None else base / config.base,
        dtype=config.dtype,
        device=device,
        device_map=config.device_map,
        batch_size=config.batch_size,
    )
