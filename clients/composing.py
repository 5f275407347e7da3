"""A silo's part in replicated rounds of cooperative inference: it signs its predictions, and composes those of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from clients.context import SiloContext
from clients.models.pretrained_model import pretrained_model
from clients.replicating import Replica, check_roster, checked_base, checked_update
from clients.told_counts import told_counts
from fedsynth.averaging import Layers
from fedsynth.config.methods import DfDSettings
from fedsynth.diffusion import codec_of, draw_initial_noise, make_scheduler
from fedsynth.errors import UserError
from fedsynth.messages import AggregateAnswer, AggregateRequest, EpsilonAnswer, EpsilonRequest, transport
from fedsynth.messages.transport import Arrays
from fedsynth.mixture import compose
from fedsynth.mixture.constant_weights import asked_rows, constant_weights
from fedsynth.mixture.moves import COMPOSED, LABELS, LOOKING_BACK, SAMPLES, is_move, moved
from fedsynth.replicas.envelopes import StatementError
from fedsynth.replicas.predictions import ASKED, COUNTS, EPSILON, signed_prediction
from fedsynth.replicas.statements import Contribution
from fedsynth.spec import ImageSpec


def signer(
    request: EpsilonRequest, spec: ImageSpec | None, silo: SiloContext
) -> Callable[[EpsilonAnswer], EpsilonAnswer]:
    """Check that a question follows from the last certificate, and return what signs the answer to it.

    Args:
        request: the question.
        spec: format and classes of the run; None: the silo has no model yet.
        silo: who is asked.

    Raises:
        UserError: the question says no keys, or something that it says does not hold.
    """
    asked = request.keys, request.run_token, request.base, request.server_round, request.timestep
    if spec is None or None in asked:
        given = f"aggregators = '{silo.config.replicas.aggregators}'"
        raise UserError(f"{given}: the question brings no keys and certificates; update the server")
    replica = Replica(silo, str(request.run_token), str(request.keys), request.certificates or ())
    terms = replica.terms(int(request.server_round or 0), str(request.base))
    pretrained, timestep = pretrained_model(silo), int(request.timestep or 0)
    counts = torch.from_numpy(told_counts(silo, spec, 1 if pretrained is None else pretrained.serves))

    def sign(answer: EpsilonAnswer) -> EpsilonAnswer:
        update = signed_prediction(answer.epsilon, counts, request.samples, request.labels, timestep)
        statement = replica.signed_update(terms, transport.encode_tensors(update), int(counts.sum()))
        return replace(answer, counts=counts, statement=statement)

    return sign


def compose_predictions(request: AggregateRequest, silo: SiloContext) -> AggregateAnswer:
    """Check the set that a round is about and every silo's predictions, compose them, and sign what comes of it.

    What a round makes is the set as it stands with its composed prediction, from which the next set follows. Drawn
    noise has other last bits on another CPU, so that no move is signed: that the set is the move of the last certified
    prediction is checked here, up to those bits, and the signed statements of this round name it to the bit.

    Raises:
        UserError: a statement does not hold, the set is not that move, or too few silos are in the roster.
    """
    config, settings = silo.config, silo.config.settings
    if not config.replicated or not isinstance(settings, DfDSettings):
        raise UserError(f"the run's strategy '{config.run.strategy}' is not composed at silos")
    replica = Replica(silo, request.run_token, request.keys, request.certificates)
    terms = replica.terms(request.server_round, request.base)
    base, state = checked_base(request), replica.checked_state(transport.peek_tensors(request.state or Arrays()))
    asked, level = transport.peek_tensors(request.asked or Arrays()), replica.certified_rounds
    timestep = _check_set(asked, base, state, level, request, silo)
    roster, updates = [], []
    for envelope, arrays in zip(request.statements, request.each_update(), strict=True):
        line, update = checked_update(envelope, arrays, terms, replica.parties, config.exchange.max_silo_images)
        _check_prediction(line, update, asked, timestep, request.spec, settings.prior)
        roster.append(line)
        updates.append(update)
    check_roster([line.silo for line in roster], request.server_round, silo, list(replica.parties.silos))
    made = {**asked, COMPOSED: _composed(asked, updates, settings)}
    carried = base if level and settings.sampler in LOOKING_BACK else {}
    return replica.answer(request, terms, tuple(roster), made, carried)


def _check_set(
    asked: Layers, base: Layers, state: Layers, level: int, request: AggregateRequest, silo: SiloContext
) -> int:
    """Refuse a set that does not follow from the last certificate; return its timestep.

    Raises:
        StatementError: it is another set, or has no levels left.
    """
    config, settings = silo.config, silo.config.settings
    assert isinstance(settings, DfDSettings)
    codec, number = codec_of(config, request.spec), request.server_round
    labels = asked.get(LABELS)
    if set(asked) != {SAMPLES, LABELS} or labels is None or labels.dtype != torch.int64 or labels.ndim != 1:
        raise StatementError(f"round {number}: what is asked about is no set of samples and labels")
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= len(request.spec.classes):
        raise StatementError(f"round {number}: a label that is none of the run's {len(request.spec.classes)} classes")
    shape = (len(labels), *codec.shape)
    if asked[SAMPLES].dtype != torch.float32 or asked[SAMPLES].shape != shape:
        raise StatementError(f"round {number}: samples of another shape than {shape}, or not in single precision")
    scheduler = make_scheduler(config.recipe, settings.dfd_rounds, settings.sampler, codec.bound)
    timesteps = scheduler.timesteps.tolist()
    if level >= len(timesteps):
        raise StatementError(f"round {number}: all {len(timesteps)} levels are certified")
    if (base.keys() != {SAMPLES, LABELS, COMPOSED}) if level else (base.keys() != {SAMPLES, LABELS}):
        raise StatementError(f"round {number}: what it starts from is no level of a set")
    if not torch.equal(base[LABELS], labels):
        raise StatementError(f"round {number}: other labels than those it starts from")
    if not level:
        expected = draw_initial_noise(config.run.seed, len(labels), codec.shape)
        if not torch.equal(base[SAMPLES], asked[SAMPLES]) or not is_move(asked[SAMPLES], expected):
            raise StatementError(f"round {number}: the samples are not the noise that follows from the run's seed")
    elif not is_move(asked[SAMPLES], moved(scheduler, level - 1, base, state, config.run.seed)):
        raise StatementError(f"round {number}: the samples are not those that the last certified prediction moves to")
    return int(timesteps[level])


def _check_prediction(
    line: Contribution, update: Layers, asked: Layers, timestep: int, spec: ImageSpec, prior: str
) -> None:
    """Refuse predictions about other samples than those that the silo was to be asked about.

    Raises:
        StatementError: they are.
    """
    counts, epsilon = update.get(COUNTS), update.get(EPSILON)
    if set(update) != {EPSILON, COUNTS, ASKED} or counts is None or epsilon is None:
        raise StatementError(f"{line.silo}: its update is no noise prediction")
    if counts.dtype != torch.int64 or counts.shape != (len(spec.classes),) or int(counts.min()) < 0:
        raise StatementError(f"{line.silo}: its images by class are no {len(spec.classes)} whole numbers")
    if int(counts.sum()) != line.images:
        raise StatementError(f"{line.silo}: its images by class are not {line.images} in all, as its statement says")
    rows = asked_rows(prior, counts, asked[LABELS])
    samples, labels = asked[SAMPLES][rows], asked[LABELS][rows]
    expected = signed_prediction(epsilon, counts, samples, labels, timestep)[ASKED]
    if not torch.equal(update[ASKED], expected):
        raise StatementError(f"{line.silo}: it was asked about other samples, or at another timestep")
    if epsilon.dtype != torch.float32 or epsilon.shape != samples.shape:
        raise StatementError(f"{line.silo}: its predictions are not of the shape of the samples")


def _composed(asked: Layers, updates: Sequence[Layers], settings: DfDSettings) -> torch.Tensor:
    """Return the mixture's noise prediction (N, C, H, W).

    Raises:
        StatementError: a class of which no holder answered.
    """
    labels, counts = asked[LABELS], torch.stack([update[COUNTS] for update in updates])
    epsilon = torch.zeros((len(updates), *asked[SAMPLES].shape))
    known = torch.zeros(len(labels), dtype=torch.bool)
    for answer, update in zip(epsilon, updates, strict=True):
        rows = asked_rows(settings.prior, update[COUNTS], labels)
        answer[rows] = update[EPSILON]
        known |= rows
    if not known.all():
        raise StatementError(f"class index {int(labels[~known][0])}: no holder is in the roster")
    return compose(epsilon, constant_weights(settings.prior, counts, labels, settings.max_silo_weight))
