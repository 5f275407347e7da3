"""The silo's own model, trained here or brought along, as its answers need it."""

from __future__ import annotations

from pathlib import Path

from clients.context import SiloContext
from clients.models.local_model import load_own_network
from clients.models.pretrained_model import noted_spec, pretrained_model, uploadable_network
from clients.silo_cache import SiloCache
from fedsynth.diffusion import codec_of, noise_predictor
from fedsynth.diffusion.denoiser import Denoiser
from fedsynth.diffusion.sampling import PredictNoise
from fedsynth.errors import UserError

LOCAL_MODEL = "local-model"

_networks: SiloCache[Denoiser] = SiloCache()
_predictors: SiloCache[PredictNoise] = SiloCache()


def own_predictor(silo: SiloContext) -> PredictNoise:
    if (pretrained := pretrained_model(silo)) is not None:
        return pretrained.predict
    return _predictors.get(silo.run_and_node, lambda: _trained_predictor(silo))


def _trained_predictor(silo: SiloContext) -> PredictNoise:
    unet = own_network(silo)
    noted = silo.noted(LOCAL_MODEL)
    assert noted is not None  # or there were no network
    return noise_predictor(unet, silo.config.recipe, codec_of(silo.config, noted_spec(noted)).bound)


def own_network(silo: SiloContext) -> Denoiser:
    if (pretrained := uploadable_network(silo)) is not None:
        return pretrained
    noted = silo.noted(LOCAL_MODEL)
    if noted is None:
        raise UserError("this silo has no trained model: 'query.prepare' failed or never came")
    folder, spec = Path(str(noted["path"])), noted_spec(noted)
    return _networks.get(silo.run_and_node, lambda: load_own_network(folder, silo.config, spec))
