"""What a silo does for each message."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from flwr.app import ConfigRecord, Context, Message, MetricRecordValues

from clients.context import (
    describe_silo,
    explained_state,
    identity,
    is_simulated,
    open_silo,
    silo_name,
    state_folder,
)
from clients.models.federated_model import FederatedModel
from clients.models.local_model import LocalModel, load_network
from clients.models.pretrained_model import (
    bring_pretrained_model,
    finished_metrics,
    pretrained_model,
    uploadable_network,
)
from clients.released_counts import released_counts
from clients.warm.silo_cache import WarmCache
from fedsynth.config import RunConfig
from fedsynth.data import Silo
from fedsynth.diffusion import (
    PARTS,
    TrainingState,
    draw_initial_noise,
    initial_unet,
    loss_curve,
    make_scheduler,
    noise_predictor,
    pick_device,
    sample,
    select_parts,
    to_model_range,
    to_uint8,
    train,
)
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.errors import UserError
from fedsynth.messages import wire
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

LOCAL_MODEL = "local-model"

_silos: WarmCache[Silo] = WarmCache()
_networks: WarmCache[UNet2DModel] = WarmCache()


def handle_describe(message: Message, context: Context) -> Message:
    """``query.describe``: which classes the silo holds, and in which format."""
    spec = describe_silo(context, RunConfig.from_run_config(context.run_config))
    answer = wire.answer(message, identity(context), {})
    answer.content[wire.CONFIG] = ConfigRecord(wire.spec_to_config(spec))
    return answer


def handle_prepare(message: Message, context: Context) -> Message:
    """``query.prepare``: say what the silo holds and, when asked for ``train-seconds``, train its own model a while.

    A silo that brings a model has nothing to train, and no images of classes that its model does not know.
    """
    config = RunConfig.from_run_config(context.run_config)
    request = wire.config(message)
    spec = wire.spec_from_config(request)
    silo = silo_of(context, config, spec)
    brought = bring_pretrained_model(context, config, spec, silo)
    held = silo.train.label_counts() * (1 if brought is None else brought.serves)
    scale, state = config.exchange.label_count_noise, state_folder(context, config)
    with explained_state(state):
        counts = released_counts(held, scale, silo, state, config.run.seed if is_simulated(context) else None)
    metrics: dict[str, MetricRecordValues] = {"num-examples": int(counts.sum()), "label-counts": counts.tolist()}
    seconds = wire.number(request, "train-seconds")
    if seconds > 0 and brought is not None:
        metrics |= finished_metrics(brought, silo, config)
    elif seconds > 0:
        with explained_state(state):
            metrics |= _train_own_model(LocalModel(silo, spec, config, state), context, seconds)
    return wire.answer(message, identity(context), metrics)


def _train_own_model(model: LocalModel, context: Context, seconds: float) -> dict[str, MetricRecordValues]:
    if not model.finished:
        training = model.train_slice(seconds)
        if not model.finished:
            return {"steps": training.steps, "loss": _recent(training.losses), "finished": 0}
    context.state[LOCAL_MODEL] = ConfigRecord({"path": str(model.folder), "hash": model.key})
    history = model.history()
    metrics: dict[str, MetricRecordValues] = {
        "steps": int(history["steps"][-1]),
        "loss": history["losses"][-1],
        "finished": 1,
        "train-seconds": history["seconds"],
        "curve-steps": history["steps"],
        "curve-losses": history["losses"],
    }
    share = model.copied_share()
    if share is not None:
        metrics["copied-share"] = share
    return metrics


def handle_epsilon(message: Message, context: Context) -> Message:
    """``query.epsilon``: the own model's noise prediction for samples, all at one noise level or each at its own."""
    start = time.monotonic()
    config, request = RunConfig.from_run_config(context.run_config), wire.config(message)
    tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
    predict = _own_predictor(context, config)
    if wire.TIMESTEPS in tensors:
        epsilon = _predict_levels(predict, tensors)
    else:
        epsilon = predict(tensors[wire.SAMPLES], int(wire.number(request, wire.TIMESTEP)), tensors[wire.LABELS])
    record = wire.encode_tensors({wire.EPSILON_RECORD: epsilon}, config.exchange.wire_dtype)
    echoed = {key: int(wire.number(request, key)) for key in wire.ECHOED if key in request}
    metrics = {"num-examples": len(epsilon), **echoed, "seconds": time.monotonic() - start}
    return wire.answer(message, identity(context), metrics, epsilon=record)


def _predict_levels(predict: PredictNoise, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Predict level by level: not every network that a silo brings finds several timesteps in one batch."""
    samples, labels, timesteps = (tensors[name] for name in (wire.SAMPLES, wire.LABELS, wire.TIMESTEPS))
    epsilon = torch.empty_like(samples)
    for timestep in timesteps.unique().tolist():
        rows = torch.nonzero(timesteps == timestep).squeeze(1)
        epsilon[rows] = predict(samples[rows], timestep, labels[rows])
    return epsilon


def handle_sample(message: Message, context: Context) -> Message:
    """``query.sample``: images of the asked labels, drawn from the own model or, given ``weights``, the federated one.

    ``numbers`` says which samples of the whole set these are: each starts from the noise it has in every method.
    """
    start = time.monotonic()
    config = RunConfig.from_run_config(context.run_config)
    request = wire.config(message)
    tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
    spec, numbers = wire.spec_from_config(request), tensors[wire.NUMBERS]
    noise = draw_initial_noise(config.run.seed, config.sampling.num_samples, spec.shape)[numbers]
    generator = make_generator(config.run.seed, "sampling", silo_name(context))
    scheduler = make_scheduler(config.diffusion, config.sampling.sampling_steps, str(request["sampler"]))
    federated = wire.WEIGHTS in wire.array_names(message)
    predict = noise_predictor(_federated_network(message, context)) if federated else _own_predictor(context, config)
    images = torch.from_numpy(to_uint8(sample(predict, scheduler, noise, tensors[wire.LABELS], generator)))
    record = wire.encode_tensors({wire.IMAGES: images, wire.NUMBERS: numbers})
    metrics = {"num-examples": len(images), "seconds": time.monotonic() - start}
    return wire.answer(message, identity(context), metrics, arrays=record)


def handle_train(message: Message, context: Context) -> Message:
    """``train``: continue from the received weights on the silo's images, with a fresh optimiser.

    Tensors of the network that the request leaves out are the silo's own: they stay on its disk under ``run-token``,
    from one round it takes part in to the next. ``report-parts`` names the parts of the network to answer (absent:
    all), ``proximal-mu`` the weight of FedProx's term (absent: 0).
    """
    start = time.monotonic()
    config = RunConfig.from_run_config(context.run_config)
    request = wire.config(message)
    server_round = int(wire.number(request, "server-round"))
    silo = silo_of(context, config, wire.spec_from_config(request))
    model = _federated_model(message, context, wire.ARRAYS)
    unet = model.before(server_round, bool(request.get("has-trained", False))).to(pick_device(config.run.device))
    losses = _train_federated(unet, silo, config, request)
    reported = select_parts(unet.state_dict(), _report_parts(request))
    model.keep(server_round)
    metrics = {
        "num-examples": len(silo.train),
        "loss": sum(losses) / len(losses),
        "seconds": time.monotonic() - start,
    }
    record = wire.encode_tensors(reported, config.exchange.wire_dtype)
    return wire.answer(message, identity(context), metrics, arrays=record)


def handle_upload(message: Message, context: Context) -> Message:
    """``query.upload``: the weights of the silo's own model."""
    config = RunConfig.from_run_config(context.run_config)
    weights = _own_network(context, config).state_dict()
    silo = silo_of(context, config, wire.spec_from_config(wire.config(message)))
    record = wire.encode_tensors(weights, config.exchange.wire_dtype)
    return wire.answer(message, identity(context), {"num-examples": len(silo.train)}, arrays=record)


def _train_federated(unet: UNet2DModel, silo: Silo, config: RunConfig, request: ConfigRecord) -> list[float]:
    server_round, steps = int(wire.number(request, "server-round")), int(wire.number(request, "steps"))
    generator = make_generator(config.run.seed, "federated-training", silo.name, server_round)
    state = TrainingState(unet, config.training, generator)
    images, labels = to_model_range(silo.train.images), torch.from_numpy(silo.train.labels)
    mu = wire.number(request, "proximal-mu", 0.0)
    return train(state, images, labels, config.training, config.diffusion, steps, proximal_mu=mu)


def _report_parts(request: ConfigRecord) -> list[str]:
    parts = request.get("report-parts", list(PARTS))
    if not isinstance(parts, list):
        raise UserError(f"report-parts = {parts!r}: must be a list of parts ({', '.join(PARTS)})")
    return [str(part) for part in parts]


def _federated_network(message: Message, context: Context) -> UNet2DModel:
    config = RunConfig.from_run_config(context.run_config)
    model = _federated_model(message, context, wire.WEIGHTS)
    unet = model.after(int(wire.number(wire.config(message), "server-round")))
    return unet.to(pick_device(config.run.device))


def _federated_model(message: Message, context: Context, record: str) -> FederatedModel:
    config, request = RunConfig.from_run_config(context.run_config), wire.config(message)
    initial = initial_unet(config, wire.spec_from_config(request))
    received = wire.decode_tensors(wire.array_record(message, record))
    token = str(request["run-token"]) if "run-token" in request else None
    return FederatedModel(initial, received, state_folder(context, config), token)


def silo_of(context: Context, config: RunConfig, spec: ImageSpec) -> Silo:
    """Return the silo behind a message, opened once a process."""
    return _silos.get(context, lambda: open_silo(context, config, spec))


def _own_predictor(context: Context, config: RunConfig) -> PredictNoise:
    brought = pretrained_model(context, config)
    return noise_predictor(_own_network(context, config)) if brought is None else brought.predict


def _own_network(context: Context, config: RunConfig) -> UNet2DModel:
    if (brought := uploadable_network(context, config)) is not None:
        return brought
    if LOCAL_MODEL not in context.state:
        raise UserError("this silo has no trained model: 'query.prepare' failed or never came")
    folder = Path(str(context.state.config_records[LOCAL_MODEL]["path"]))
    return _networks.get(context, lambda: load_network(folder, pick_device(config.run.device)))


def _recent(losses: list[float]) -> float:
    return loss_curve(losses)["losses"][-1]
