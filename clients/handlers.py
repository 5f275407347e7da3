"""What a silo does for each message."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from flwr.app import ConfigRecord, Context, Message, MetricRecordValues

from clients.local_model import LocalModel, load_network
from clients.silo_door import identity, open_silo, silo_name, state_folder
from clients.warm import WarmCache
from fedsynth import wire
from fedsynth.config import RunConfig
from fedsynth.data import Silo
from fedsynth.diffusion import (
    TrainingState,
    draw_initial_noise,
    initial_unet,
    loss_curve,
    make_scheduler,
    noise_predictor,
    pick_device,
    sample,
    to_model_range,
    to_uint8,
    train,
)
from fedsynth.errors import UserError
from fedsynth.seeding import make_generator
from fedsynth.spec import ImageSpec

LOCAL_MODEL = "local-model"

_silos: WarmCache[Silo] = WarmCache()
_networks: WarmCache[UNet2DModel] = WarmCache()


def handle_prepare(message: Message, context: Context) -> Message:
    """``query.prepare``: say what the silo holds and, when asked for ``train-seconds``, train its own model a while."""
    config = RunConfig.from_run_config(context.run_config)
    request = wire.config(message)
    spec = wire.spec_from_config(request)
    silo = _open(context, config, spec)
    metrics: dict[str, MetricRecordValues] = {
        "num-examples": len(silo.train),
        "label-counts": silo.train.label_counts().tolist(),
    }
    seconds = wire.number(request, "train-seconds")
    if seconds > 0:
        metrics |= _train_own_model(LocalModel(silo, spec, config, state_folder(context, config)), context, seconds)
    return wire.answer(message, identity(context), metrics)


def _train_own_model(model: LocalModel, context: Context, seconds: float) -> dict[str, MetricRecordValues]:
    if not model.finished:
        training = model.train_slice(seconds)
        if not model.finished:
            return {"steps": training.steps, "loss": _recent(training.losses), "finished": 0}
    context.state[LOCAL_MODEL] = ConfigRecord({"path": str(model.folder), "hash": model.key})
    history = model.history()
    return {
        "steps": int(history["steps"][-1]),
        "loss": history["losses"][-1],
        "finished": 1,
        "train-seconds": history["seconds"],
        "curve-steps": history["steps"],
        "curve-losses": history["losses"],
    }


def handle_epsilon(message: Message, context: Context) -> Message:
    """``query.epsilon``: the own model's noise prediction for samples at one noise level."""
    start = time.monotonic()
    config = RunConfig.from_run_config(context.run_config)
    tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
    timestep = int(wire.number(wire.config(message), "timestep"))
    predict = noise_predictor(_own_network(context, config))
    epsilon = predict(tensors[wire.SAMPLES], timestep, tensors[wire.LABELS])
    record = wire.encode_tensors({wire.EPSILON_RECORD: epsilon}, config.exchange.wire_dtype)
    metrics = {"num-examples": len(epsilon), "seconds": time.monotonic() - start}
    return wire.answer(message, identity(context), metrics, **{wire.EPSILON_RECORD: record})


def handle_sample(message: Message, context: Context) -> Message:
    """``query.sample``: images of the asked labels, drawn from the own model.

    ``numbers`` says which samples of the whole set these are: each starts from the noise it has in every method.
    """
    start = time.monotonic()
    config = RunConfig.from_run_config(context.run_config)
    request = wire.config(message)
    tensors = wire.decode_tensors(wire.array_record(message, wire.ARRAYS))
    spec, numbers = wire.spec_from_config(request), tensors[wire.NUMBERS]
    noise = draw_initial_noise(config.run.seed, config.sampling.num_samples, spec.shape)[numbers]
    generator = make_generator(config.run.seed, "sampling", silo_name(context))
    scheduler = make_scheduler(config.diffusion, config.sampling.sampling_steps)
    predict = noise_predictor(_own_network(context, config))
    images = torch.from_numpy(to_uint8(sample(predict, scheduler, noise, tensors[wire.LABELS], generator)))
    record = wire.encode_tensors({wire.IMAGES: images, wire.NUMBERS: numbers})
    metrics = {"num-examples": len(images), "seconds": time.monotonic() - start}
    return wire.answer(message, identity(context), metrics, arrays=record)


def handle_train(message: Message, context: Context) -> Message:
    """``train``: continue from the received weights on the silo's images, with a fresh optimiser."""
    start = time.monotonic()
    config = RunConfig.from_run_config(context.run_config)
    request = wire.config(message)
    spec, server_round = wire.spec_from_config(request), int(wire.number(request, "server-round"))
    silo = _open(context, config, spec)
    unet = initial_unet(config, spec)
    unet.load_state_dict(wire.decode_tensors(wire.array_record(message, wire.ARRAYS)))
    generator = make_generator(config.run.seed, "federated-training", silo.name, server_round)
    state = TrainingState(unet.to(pick_device(config.run.device)), config.training, generator)
    images, labels = to_model_range(silo.train.images), torch.from_numpy(silo.train.labels)
    losses = train(state, images, labels, config.training, config.diffusion, int(wire.number(request, "steps")))
    record = wire.encode_tensors(state.unet.state_dict(), config.exchange.wire_dtype)
    metrics = {
        "num-examples": len(silo.train),
        "loss": sum(losses) / len(losses),
        "seconds": time.monotonic() - start,
    }
    return wire.answer(message, identity(context), metrics, arrays=record)


def _open(context: Context, config: RunConfig, spec: ImageSpec) -> Silo:
    return _silos.get(context, lambda: open_silo(context, config, spec))


def _own_network(context: Context, config: RunConfig) -> UNet2DModel:
    if LOCAL_MODEL not in context.state:
        raise UserError("this silo has no trained model yet: 'query.prepare' must come first")
    folder = Path(str(context.state.config_records[LOCAL_MODEL]["path"]))
    return _networks.get(context, lambda: load_network(folder, pick_device(config.run.device)))


def _recent(losses: list[float]) -> float:
    return loss_curve(losses)["losses"][-1]
