"""What crosses between server and silos: one file a message, each with a frozen request and answer.

| message | server sends | silo answers |
|---|---|---|
| :mod:`~fedsynth.messages.describe` | nothing | format and class names of its images |
| :mod:`~fedsynth.messages.prepare` | image format, seconds to train | image and label counts, training progress |
| :mod:`~fedsynth.messages.train` | weights, all or some parts | weights of the parts asked for |
| :mod:`~fedsynth.messages.shards` | large weights, shard after shard | the same |
| :mod:`~fedsynth.messages.epsilon` | samples, labels, timesteps | noise predictions |
| :mod:`~fedsynth.messages.masked` | the same for a secure sum; then two questions that finish it | masked predictions |
| :mod:`~fedsynth.messages.gradient` | weights, for a secure sum | gradients with noise, masked |
| :mod:`~fedsynth.messages.masked_train` | weights, for a secure sum | masked changes of the weights |
| :mod:`~fedsynth.messages.aggregate` | updates of all silos | a signed statement of what they make |
| :mod:`~fedsynth.messages.sample` | labels, sample numbers, perhaps weights | images |
| :mod:`~fedsynth.messages.upload` | image format | weights of its own model |
| :mod:`~fedsynth.messages.confusion` | a classifier | counts of its confusions |
| :mod:`~fedsynth.messages.select` | a classifier, thresholds | counts of pseudo-labels |
| :mod:`~fedsynth.messages.synthesise` | weights, images per class to draw and keep; or the images | counts of them |
| :mod:`~fedsynth.messages.statistics` | name of a network that the silo has | moments of features |
| :mod:`~fedsynth.messages.evaluate` | classifier and manifold of the synthetic set | held-out images, in four cells |

:mod:`~fedsynth.messages.fields` declares where a field travels and what it must be,
:mod:`~fedsynth.messages.envelope` what all messages have in common, :mod:`~fedsynth.messages.transport` turns tensors
into bytes.
"""

from fedsynth.messages.aggregate import AggregateAnswer, AggregateRequest
from fedsynth.messages.confusion import ConfusionAnswer, ConfusionRequest
from fedsynth.messages.describe import DescribeAnswer, DescribeRequest
from fedsynth.messages.envelope import PROTOCOL, Answer, Request, Sender, sender_of
from fedsynth.messages.epsilon import EpsilonAnswer, EpsilonRequest
from fedsynth.messages.evaluate import EvaluateAnswer, EvaluateRequest
from fedsynth.messages.fields import MessageError
from fedsynth.messages.gradient import GradientRequest
from fedsynth.messages.masked import (
    AgreeAnswer,
    AgreeRequest,
    MaskedAnswer,
    MaskedRequest,
    RevealAnswer,
    RevealRequest,
    SumRequest,
)
from fedsynth.messages.masked_train import MaskedTrainRequest
from fedsynth.messages.prepare import PrepareAnswer, PrepareRequest
from fedsynth.messages.sample import SampleAnswer, SampleRequest
from fedsynth.messages.select import SelectAnswer, SelectRequest
from fedsynth.messages.shards import (
    GetShardAnswer,
    GetShardRequest,
    PutShardAnswer,
    PutShardRequest,
    TrainShardsAnswer,
    TrainShardsRequest,
)
from fedsynth.messages.statistics import StatisticsAnswer, StatisticsRequest
from fedsynth.messages.synthesise import SynthesiseAnswer, SynthesiseRequest
from fedsynth.messages.train import TrainAnswer, TrainRequest
from fedsynth.messages.upload import UploadAnswer, UploadRequest

REQUESTS: tuple[type[Request[Answer]], ...] = (
    DescribeRequest,
    PrepareRequest,
    TrainRequest,
    PutShardRequest,
    TrainShardsRequest,
    GetShardRequest,
    EpsilonRequest,
    MaskedRequest,
    GradientRequest,
    MaskedTrainRequest,
    AggregateRequest,
    AgreeRequest,
    RevealRequest,
    SampleRequest,
    UploadRequest,
    ConfusionRequest,
    SelectRequest,
    SynthesiseRequest,
    StatisticsRequest,
    EvaluateRequest,
)
"""All of them."""

__all__ = [
    "PROTOCOL",
    "REQUESTS",
    "AggregateAnswer",
    "AggregateRequest",
    "AgreeAnswer",
    "AgreeRequest",
    "Answer",
    "ConfusionAnswer",
    "ConfusionRequest",
    "DescribeAnswer",
    "DescribeRequest",
    "EpsilonAnswer",
    "EpsilonRequest",
    "EvaluateAnswer",
    "EvaluateRequest",
    "GetShardAnswer",
    "GetShardRequest",
    "GradientRequest",
    "MaskedAnswer",
    "MaskedRequest",
    "MaskedTrainRequest",
    "MessageError",
    "PrepareAnswer",
    "PrepareRequest",
    "PutShardAnswer",
    "PutShardRequest",
    "Request",
    "RevealAnswer",
    "RevealRequest",
    "SampleAnswer",
    "SampleRequest",
    "SelectAnswer",
    "SelectRequest",
    "Sender",
    "StatisticsAnswer",
    "StatisticsRequest",
    "SumRequest",
    "SynthesiseAnswer",
    "SynthesiseRequest",
    "TrainAnswer",
    "TrainRequest",
    "TrainShardsAnswer",
    "TrainShardsRequest",
    "UploadAnswer",
    "UploadRequest",
    "sender_of",
]
