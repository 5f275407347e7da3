"""The ClientApp: every message is parsed, handled and answered here; whatever goes wrong becomes an error answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from diffusers.utils import logging as diffusers_logging
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients import few_labels, measuring, predicting, preparing, shards, summed_gradients, summing, training
from clients.context import SiloContext, is_real, shown_name
from clients.gate import admitted, asked_of, refuse_kind
from clients.journal import journal
from fedsynth.errors import FilesError, UserError
from fedsynth.messages import (
    AggregateRequest,
    AgreeRequest,
    Answer,
    ConfusionRequest,
    DescribeRequest,
    EpsilonRequest,
    EvaluateRequest,
    GetShardRequest,
    GradientRequest,
    MaskedRequest,
    MaskedTrainRequest,
    PrepareRequest,
    PutShardRequest,
    Request,
    RevealRequest,
    SampleRequest,
    SelectRequest,
    StatisticsRequest,
    SynthesiseRequest,
    TrainRequest,
    TrainShardsRequest,
    UploadRequest,
)
from fedsynth.text import printable, with_short_paths

R = TypeVar("R", bound=Request[Answer])

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()


def answering(
    request_type: type[R], handler: Callable[[R, SiloContext], Answer]
) -> Callable[[Message, Context], Message]:
    """Return what Flower calls for one kind of message.

    What the silo's policy forbids does not reach the handler. Whatever happens, the answer is a message: an error names
    the silo and the reason, and its code tells refusals from crashes. Even ``SystemExit`` is caught: a Ray actor that
    dies goes back to the pool and fails every later message.
    """

    def handle(message: Message, context: Context) -> Message:
        try:
            with journal(message, context) as entry:
                silo = SiloContext(context)
                refuse_kind(request_type.kind.removeprefix("query."), silo)
                request = request_type.from_message(message)
                entry.asked = asked_of(request, silo)
                with admitted(request, silo, entry.asked):
                    answer = handler(request, silo)
                return entry.answered(replace(answer, seconds=entry.seconds).to_message(message, silo.sender))
        except BaseException as error:
            refused = isinstance(error, UserError)
            code = ErrorCode.MOD_FAILED_PRECONDITION if refused else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reason = printable(f"{shown_name(context)}: {_told(error, context)}")
            return Message(Error(code=code, reason=reason), reply_to=message)

    return handle


def _told(error: BaseException, context: Context) -> str:
    """Return what the server is told of an error.

    Of a real silo's crash no text, since shapes in it are counts; of its paths their last names.
    """
    real = is_real(context)
    if isinstance(error, FilesError):
        return error.elsewhere
    if real and not isinstance(error, UserError):
        return f"{type(error).__name__}: the silo's log says why"
    text = f"{type(error).__name__}: {error}"
    return with_short_paths(text) if real else text


app = ClientApp()
app.query("describe")(answering(DescribeRequest, preparing.describe))
app.query("prepare")(answering(PrepareRequest, preparing.prepare))
app.query("epsilon")(answering(EpsilonRequest, predicting.epsilon))
app.query("masked")(answering(MaskedRequest, predicting.masked))
app.query("gradient")(answering(GradientRequest, summed_gradients.gradient))
app.query("masked_train")(answering(MaskedTrainRequest, training.masked_train))
app.query("put_shard")(answering(PutShardRequest, shards.put_shard))
app.query("train_shards")(answering(TrainShardsRequest, shards.train_shards))
app.query("get_shard")(answering(GetShardRequest, shards.get_shard))
app.query("aggregate")(answering(AggregateRequest, training.aggregate))
app.query("agree")(answering(AgreeRequest, summing.agree))
app.query("reveal")(answering(RevealRequest, summing.reveal))
app.query("sample")(answering(SampleRequest, predicting.sample))
app.query("upload")(answering(UploadRequest, predicting.upload))
app.query("confusion")(answering(ConfusionRequest, few_labels.count_confusions))
app.query("select")(answering(SelectRequest, few_labels.select_pseudo_labels))
app.query("synthesise")(answering(SynthesiseRequest, few_labels.synthesise))
app.query("statistics")(answering(StatisticsRequest, measuring.statistics))
app.train()(answering(TrainRequest, training.train))
app.evaluate()(answering(EvaluateRequest, measuring.evaluate))
