"""Which values of several keys do not go together: refused by name, with the remedy, before any work starts."""

from __future__ import annotations

from fedsynth.config.keys import one_of_words
from fedsynth.config.methods import (
    AveragingSettings,
    DDSASettings,
    DfDSettings,
    DPSumSettings,
    FedDDPMSettings,
    FedDiffuseSettings,
)
from fedsynth.config.training import LORA
from fedsynth.config.types import (
    AUTO,
    FEW_LABELS,
    LEAST_SILOS,
    MEANS,
    OWN_MODELS,
    REAL_SILOS,
    SUMMED_UPDATES,
    WITH_ADAPTERS,
    WITH_BASE_MODEL,
)
from fedsynth.config.values import RunValues
from fedsynth.errors import UserError
from fedsynth.plugins import is_plugin


def refuse_contradictions(config: RunValues) -> None:
    """Refuse values of several keys that do not go together, each of them valid by itself.

    Raises:
        UserError: names the keys, their values, and what to do.
    """
    run, flat = config.run, config.to_run_config()
    flat |= {"num-train-timesteps": config.recipe.num_train_timesteps, "dp-steps": config.privacy.dp_steps}
    if not is_plugin(run.strategy):
        _ = config.settings  # which refuses values that do not go together
    if config.cooperation.secure_aggregation:
        _refuse_single_answers(config)
    _refuse_what_is_not_private(config)
    if config.replicated:
        _refuse_what_is_not_replicated(config)
    steps = "dp-steps" if config.private else "train-steps"
    rounds = "num-train-timesteps" if _rounds_are_timesteps(config) else steps
    limits = {"sampling-steps": "num-train-timesteps", "dfd-rounds": "num-train-timesteps", "num-rounds": rounds}
    for name, other in limits.items():
        value, limit = flat[name], flat[other]
        if isinstance(value, int) and isinstance(limit, int) and value > limit:
            raise UserError(f"{name} = {value}: must be <= {other} = {limit}")
    _refuse_with_base_model(config)
    if config.recipe.codec == "autoencoder" and not (config.model.autoencoder or config.model.base_model):
        raise UserError("codec = 'autoencoder' needs an autoencoder: set autoencoder to the folder of one")
    if config.data.dataset == REAL_SILOS:
        _refuse_at_real_silos(config)
    if config.training.mixed_precision == "bf16" and run.device == "cpu":
        raise UserError("mixed-precision = 'bf16' needs CUDA: set device = 'auto' or 'cuda', or mixed-precision = 'no'")
    if config.exchange.min_replies != AUTO and config.exchange.min_replies > run.num_clients:
        raise UserError(f"min-replies = {config.exchange.min_replies}: must be <= num-clients = {run.num_clients}")


def _rounds_are_timesteps(config: RunValues) -> bool:
    if is_plugin(config.run.strategy):
        return False
    return isinstance(config.settings, DDSASettings) and config.settings.own_models


def _refuse_at_real_silos(config: RunValues) -> None:
    """Refuse what is for simulated silos alone."""
    if config.run.strategy == "centralised":
        raise UserError("strategy = 'centralised' works in simulation only: real silos do not show their images")
    settings = config.settings
    if isinstance(settings, DDSASettings) and "all" in settings.compared():
        raise UserError(
            f"compare-classifiers = '{settings.compare_classifiers}': 'all' learns from every true label, which a"
            " simulation alone knows; leave it out"
        )


def _refuse_with_base_model(config: RunValues) -> None:
    """Refuse what a base model is not built for."""
    model, strategy = config.model, config.run.strategy
    if not model.base_model:
        return
    adapted = model.train == LORA
    remedy = f"choose {one_of_words(WITH_ADAPTERS if adapted else WITH_BASE_MODEL)}"
    if not adapted and strategy in WITH_ADAPTERS:
        remedy = f"set train = '{LORA}', or {remedy}"
    not_built = {
        f"strategy = '{strategy}'": (strategy not in (WITH_ADAPTERS if adapted else WITH_BASE_MODEL), remedy),
        f"dp-epsilon = {config.privacy.dp_epsilon}": (config.private, "leave it out"),
        "secure-aggregation = true": (config.cooperation.secure_aggregation, "set it to false"),
        f"aggregators = '{config.replicas.aggregators}'": (config.replicated, "set it to 'server'"),
        f"generator-steps = {config.sampling.generator_steps}": (config.sampling.generator_steps > 0, "set it to 0"),
        f"codec = '{config.recipe.codec}'": (config.recipe.codec not in (AUTO, "autoencoder"), "leave it out"),
    }
    for given, (found, remedy) in not_built.items():
        if found:
            raise UserError(f"{given} with a base-model: that is not built; {remedy}")
    guidance, settings = config.sampling.guidance, config.settings
    if guidance > 1 and isinstance(settings, DfDSettings) and settings.weights == "energy":
        raise UserError(
            f"weights = 'energy' with guidance = {guidance}: a guided prediction lies further from the noise than the"
            " network's own, so that its distance says nothing of the silo; set weights = 'posterior' or 'constant', or"
            " guidance = 1"
        )
    if adapted and isinstance(config.settings, AveragingSettings):
        _refuse_unsound_factors(config.settings, strategy)


def _refuse_unsound_factors(settings: AveragingSettings, strategy: str) -> None:
    """Refuse to treat the factors of adapters as weights: many pairs of them have one product, which alone counts."""
    aggregation = settings.lora_aggregation
    if aggregation == "freeze-a":
        return
    if strategy not in MEANS:
        raise UserError(
            f"lora-aggregation = '{aggregation}' with strategy = '{strategy}': many factors B and A have one product,"
            " so that their medians, distances and steps one by one say nothing of it; set lora-aggregation ="
            " 'freeze-a', where all silos have one A, or strategy = 'fedavg'"
        )
    if settings.sample_from == "ema":
        raise UserError(
            f"sample-from = 'ema' with lora-aggregation = '{aggregation}': the moving average of factors is not that of"
            " their products; set sample-from = 'raw', or lora-aggregation = 'freeze-a'"
        )


def _refuse_single_answers(config: RunValues) -> None:
    """Refuse what a server cannot do that sees sums only."""
    strategy, settings, num_clients = config.run.strategy, config.settings, config.run.num_clients
    if is_plugin(strategy):
        raise UserError(
            f"strategy = '{strategy}' with secure-aggregation = true: whether sums are enough for it is not known;"
            " choose another strategy, or set secure-aggregation = false"
        )
    if isinstance(settings, FedDDPMSettings):
        raise UserError(
            f"strategy = '{strategy}' with secure-aggregation = true: every silo uploads a model of its own, which the"
            " server sees; set strategy = 'fedavg', or secure-aggregation = false"
        )
    if isinstance(settings, AveragingSettings) and strategy not in SUMMED_UPDATES:
        raise UserError(
            f"strategy = '{strategy}' with secure-aggregation = true: its rule compares the silos' single answers,"
            " which the server does not see; set strategy = 'fedavg', or secure-aggregation = false"
        )
    if isinstance(settings, AveragingSettings) and settings.fraction_train < 1:
        raise UserError(
            f"fraction-train = {settings.fraction_train} with secure-aggregation = true: the sums of two rounds, with"
            " and without a silo, would differ by its answer; set fraction-train = 1"
        )
    if isinstance(settings, DfDSettings) and settings.weights != "constant":
        raise UserError(
            f"weights = '{settings.weights}' with secure-aggregation = true: they are computed from every silo's single"
            " answer, which the server does not see; set weights = 'constant'"
        )
    if isinstance(settings, DfDSettings) and settings.parallel_levels > 1:
        raise UserError(
            f"parallel-levels = {settings.parallel_levels} with secure-aggregation = true: a silo answers about a"
            " timestep once in a run, not about guesses of it; set parallel-levels = 1"
        )
    if num_clients < LEAST_SILOS:
        raise UserError(
            f"num-clients = {num_clients} with secure-aggregation = true: must be >= {LEAST_SILOS}, of two silos each"
            " knows the other's answer from the sum"
        )
    halves = isinstance(settings, FedDiffuseSettings) and settings.feddiffuse_method == "usplit"
    if halves and num_clients < 2 * LEAST_SILOS:
        raise UserError(
            f"num-clients = {num_clients} with feddiffuse-method = 'usplit' and secure-aggregation = true: must be >="
            f" {2 * LEAST_SILOS}, {LEAST_SILOS} for each half of the network; set feddiffuse-method = 'full'"
        )


def _refuse_what_is_not_replicated(config: RunValues) -> None:
    """Refuse what no certificate would speak of."""
    given = f"aggregators = '{config.replicas.aggregators}'"
    if is_plugin(config.run.strategy):
        raise UserError(
            f"strategy = '{config.run.strategy}' with {given}: aggregators compute the built-in rules alone;"
            " choose one of these, or set aggregators = 'server'"
        )
    if config.cooperation.secure_aggregation:
        raise UserError(
            f"secure-aggregation = true with {given}: aggregators check every single update; set one of the two"
        )
    if config.exchange.wire_dtype != "float32":
        raise UserError(
            f"wire-dtype = '{config.exchange.wire_dtype}' with {given}: what travels must be what is certified, bit for"
            " bit; set wire-dtype = 'float32'"
        )
    if isinstance(config.settings, AveragingSettings) and config.settings.sample_from == "ema":
        raise UserError(
            f"sample-from = 'ema' with {given}: only the weights of each round are certified, not their moving average;"
            " set sample-from = 'raw'"
        )
    settings = config.settings
    if isinstance(settings, FedDiffuseSettings) and settings.feddiffuse_method in ("ulatdec", "udec"):
        raise UserError(
            f"feddiffuse-method = '{settings.feddiffuse_method}' with {given}: the silos' own encoders, with which they"
            " draw, are in no certificate; set feddiffuse-method = 'usplit' or 'full'"
        )
    if isinstance(settings, DfDSettings):
        _refuse_predictions_that_are_not_replicated(settings, given)
    if config.data.dataset == REAL_SILOS and not config.replicas.key_file:
        raise UserError(
            f"{given} needs key-file, the silo-keys.json that every silo has: 'fedsynth link keys' makes it"
        )
    replicas = config.replicas
    if bool(replicas.ledger_url) != bool(replicas.ledger_contract):
        raise UserError(
            f"ledger-url = '{replicas.ledger_url}' with ledger-contract = '{replicas.ledger_contract}': set both, or"
            " none; 'fedsynth link ledger' deploys a contract"
        )


def _refuse_predictions_that_are_not_replicated(settings: DfDSettings, given: str) -> None:
    """Refuse ways of composing noise predictions that aggregators cannot compute with equal bits."""
    if settings.weights != "constant":
        raise UserError(
            f"weights = '{settings.weights}' with {given}: they come of exponentials, whose last bits depend on the"
            " CPU, so that no two aggregators need sign the same; set weights = 'constant'"
        )
    if settings.parallel_levels > 1:
        raise UserError(
            f"parallel-levels = {settings.parallel_levels} with {given}: a certificate speaks of one level, not of"
            " guesses of the next; set parallel-levels = 1"
        )
    if settings.sampler == "ula" or is_plugin(settings.sampler):
        raise UserError(
            f"sampler = '{settings.sampler}' with {given}: aggregators do not know its moves, and could not check them;"
            " set sampler = 'ddpm', 'ddim', 'dpmsolver++' or 'sde-dpmsolver++'"
        )


def _refuse_what_is_not_private(config: RunValues) -> None:
    """Refuse what dp-epsilon does not cover, and what needs it."""
    if not config.private:
        if isinstance(config.settings, DPSumSettings):
            raise UserError(
                "strategy = 'dp-sum' needs dp-epsilon, from which its noise follows: set dp-epsilon = 10, for instance,"
                " or strategy = 'fedavg'"
            )
        return
    strategy, given = config.run.strategy, f"dp-epsilon = {config.privacy.dp_epsilon}"
    if strategy == "centralised":
        raise UserError(
            f"{given}: strategy = 'centralised' trains on all images at the server; choose another strategy"
        )
    if strategy == "fedddpm-plus":
        raise UserError(
            f"{given}: strategy = 'fedddpm-plus' acts on the silos' losses, which would tell of their images; set"
            " strategy = 'fedddpm'"
        )
    if strategy in FEW_LABELS:
        raise UserError(
            f"{given}: strategy = '{strategy}' has silos train classifiers and count confusions outside of it; choose"
            " another strategy"
        )
    known = isinstance(config.settings, AveragingSettings | DPSumSettings)
    if not (strategy in OWN_MODELS or known) or is_plugin(strategy):
        raise UserError(f"{given}: what strategy = '{strategy}' has silos train is not known; choose another strategy")
    if config.evaluation.evaluate_silos:
        raise UserError(
            f"{given}: evaluate-silos = true has silos measure their images outside of it; set evaluate-silos = false"
        )
