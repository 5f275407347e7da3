"""What ``fedsynth audit`` compares with the ledger of a run."""

from __future__ import annotations

from fedsynth.config.keys import parse
from fedsynth.config.run import Replicas
from fedsynth.errors import UserError
from fedsynth.heads import Ledger, LedgerError
from fedsynth.replicas.audit import RunAudit


def ledger_to_ask(url: str, contract: str) -> Ledger | None:
    """Return the ledger of these two keys; None: both are empty.

    Raises:
        UserError: one of them is no address or is missing, or the package web3 is not installed.
    """
    given = parse(Replicas, {"ledger_url": url, "ledger_contract": contract})
    if not url and not contract:
        return None
    if not url or not contract:
        raise UserError(f"ledger-url = '{url}' with ledger-contract = '{contract}': give both, or none")
    return Ledger(given.ledger_url, given.ledger_contract)


def check_heads(report: RunAudit, ledger: Ledger) -> str:
    """Compare every certificate's head with the ledger's; return a line about it.

    Args:
        report: of the log; takes what does not hold.
        ledger: whose contract the consortium names.
    """
    seen, run = report.certificates.seen, report.parties.run
    agreeing = 0
    try:
        ledger.check(writing=False)
        for server_round, head in sorted(seen.items()):
            found = ledger.head(run, server_round)
            agreeing += found == head
            if not found:
                report.complain(f"the ledger has no head of round {server_round}")
            elif found != head:
                report.complain(f"the ledger has another head of round {server_round}: {found}")
        if (last := ledger.last(run)) > report.certificates.round:
            report.complain(f"the ledger has heads up to round {last}: later rounds were cut off the log")
    except (LedgerError, UserError) as error:
        report.complain(f"the ledger at '{ledger.url}': {error}")
    return f"ledger {agreeing} of {len(seen)} heads agree in contract {ledger.contract}"
