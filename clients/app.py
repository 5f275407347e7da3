"""The ClientApp: message names to handlers, and a net under every one of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

from diffusers.utils import logging as diffusers_logging
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.context import silo_name
from clients.handlers import (
    handle_describe,
    handle_epsilon,
    handle_prepare,
    handle_sample,
    handle_train,
    handle_upload,
)
from clients.journal import journal
from clients.measuring import handle_evaluate, handle_statistics
from fedsynth.errors import UserError

Handler = Callable[[Message, Context], Message]

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()


def guarded(handler: Handler) -> Handler:
    """Answer with an error that names the silo and the reason, whatever happens; its code tells refusals from crashes.

    Even ``SystemExit``: a Ray actor that dies goes back to the pool and fails every later message.
    """

    @functools.wraps(handler)
    def handle(message: Message, context: Context) -> Message:
        try:
            with journal(message, context):
                return handler(message, context)
        except BaseException as error:
            refused = isinstance(error, UserError)
            code = ErrorCode.MOD_FAILED_PRECONDITION if refused else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reason = f"{silo_name(context)}: {type(error).__name__}: {error}"
            return Message(Error(code=code, reason=reason), reply_to=message)

    return handle


app = ClientApp()
app.query("describe")(guarded(handle_describe))
app.query("prepare")(guarded(handle_prepare))
app.query("epsilon")(guarded(handle_epsilon))
app.query("sample")(guarded(handle_sample))
app.query("upload")(guarded(handle_upload))
app.query("statistics")(guarded(handle_statistics))
app.train()(guarded(handle_train))
app.evaluate()(guarded(handle_evaluate))
