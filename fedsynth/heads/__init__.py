"""Heads of replicated runs on an Ethereum node, for consortia that own a chain: nothing else needs it.

The contract (``Heads.sol``, :mod:`fedsynth.heads.contract`) holds one head a round of a run, and lets nobody change it.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsynth.errors import UserError
from fedsynth.files import read_text
from fedsynth.heads.contract import ABI, BYTECODE, is_deployed
from fedsynth.text import printable

PATIENCE = 5.0
"""Seconds in which a node answers."""


class LedgerError(Exception):
    """The node cannot be asked, or refuses; says why."""


class Ledger:
    """A contract of heads, as one account sees it.

    Args:
        url: of the node, http or https.
        contract: its address, 0x and 40 hexadecimal digits; empty: there is none yet.
        key_file: file of the account's private key; empty: the node signs with its own first account.

    Raises:
        UserError: the package web3 is not installed, or the key file cannot be used.
    """

    def __init__(self, url: str, contract: str = "", key_file: str = "") -> None:
        if find_spec("web3") is None:
            raise UserError(
                f"ledger-url = '{url}': the package 'web3' is not installed: pip install 'fedsynth[ledger]', or leave"
                " ledger-url out"
            )
        from web3 import HTTPProvider, Web3
        from web3.middleware import ExtraDataToPOAMiddleware

        # Retries are the run's, which knows what is missing.
        provider = HTTPProvider(url, request_kwargs={"timeout": PATIENCE}, exception_retry_configuration=None)
        self._web3 = Web3(provider)
        # Blocks of chains that a consortium signs itself hold more than web3 expects.
        self._web3.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
        self._account = self._signing(Path(key_file).expanduser()) if key_file else ""
        self.url, self.contract = url, contract
        address = Web3.to_checksum_address(contract) if contract else None
        self._heads: Any = self._web3.eth.contract(address=address, abi=ABI, bytecode=BYTECODE)

    def check(self, writing: bool = True) -> None:
        """Refuse an address at which another contract lies, or none.

        Args:
            writing: whether the account must be the one that may write there.

        Raises:
            UserError: it is one.
            LedgerError: the node cannot be asked.
        """
        code = _asked(lambda: bytes(self._web3.eth.get_code(self._heads.address)).hex())
        if not is_deployed(code):
            what = "another contract" if code else "no contract"
            raise UserError(
                f"ledger-contract = '{self.contract}': {what} lies there at the node '{self.url}': 'fedsynth link"
                " ledger' deploys one"
            )
        if not writing:
            return
        writer, own = _asked(self._heads.functions.writer().call), self._sender()
        if writer != own:
            raise UserError(
                f"ledger-contract = '{self.contract}': only {writer} may write there, and the account is {own}: give"
                " ledger-key-file, or deploy a contract of this account's with 'fedsynth link ledger'"
            )

    def head(self, run_token: str, server_round: int) -> str:
        """Return the head of a round, 64 hexadecimal digits; empty: there is none.

        Raises:
            LedgerError: the node cannot be asked.
        """
        found = bytes(_asked(self._heads.functions.heads(_run(run_token), server_round).call))
        return found.hex() if any(found) else ""

    def last(self, run_token: str) -> int:
        """Return the highest round that has a head; 0: none.

        Raises:
            LedgerError: the node cannot be asked.
        """
        return int(_asked(self._heads.functions.last(_run(run_token)).call))

    def send(self, run_token: str, server_round: int, head: str) -> None:
        """Send the head of a round, without waiting for the block that holds it.

        Raises:
            LedgerError: the node cannot be asked, or refuses.
        """
        call = self._heads.functions.note(_run(run_token), server_round, bytes.fromhex(head))
        sender = self._sender()
        _asked(lambda: call.transact({"from": sender}))

    def deploy(self, timeout: float) -> str:
        """Deploy a contract into which the account alone may write; return its address.

        Args:
            timeout: seconds to wait for its block.

        Raises:
            LedgerError: the node cannot be asked, or refuses.
        """
        sender = self._sender()
        sent = _asked(lambda: self._heads.constructor().transact({"from": sender}))
        return str(_asked(lambda: self._web3.eth.wait_for_transaction_receipt(sent, timeout))["contractAddress"])

    def _sender(self) -> str:
        if not self._account:
            accounts = _asked(lambda: self._web3.eth.accounts)
            if not accounts:
                raise LedgerError("the node has no account of its own: give ledger-key-file")
            self._account = str(accounts[0])
        return self._account

    def _signing(self, path: Path) -> str:
        """Have web3 sign with the key of a file; return the account's address."""
        from eth_account import Account
        from web3.middleware import SignAndSendRawMiddlewareBuilder

        account = Account.from_key(read_account_key(path))
        self._web3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(account), layer=0)
        return str(account.address)


def read_account_key(path: Path) -> bytes:
    """Read the private key of an Ethereum account, 32 bytes.

    Raises:
        UserError: it cannot be read, others can read it, or it is none.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise UserError(f"ledger-key-file = '{path}': can be read by others: chmod 600 '{path}'")
        key = bytes.fromhex(read_text(path).strip().removeprefix("0x"))
    except OSError as error:
        raise UserError(f"ledger-key-file = '{path}': {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        key = b""
    if len(key) != 32:
        raise UserError(f"ledger-key-file = '{path}': must hold a private key, 64 hexadecimal digits, and nothing else")
    return key


def _run(run_token: str) -> bytes:
    return sha256(run_token.encode()).digest()


def _asked(call: Any) -> Any:
    """Return what a node answers.

    Raises:
        LedgerError: it does not; whatever web3 makes of a stranger's answer is one of its errors, or any other.
    """
    try:
        return call()
    except Exception as error:
        kind = type(error).__name__
        if type(error).__module__.startswith("requests."):
            # Its text holds the path of the address, which may be a password.
            raise LedgerError(f"it cannot be reached ({kind})") from None
        raise LedgerError(f"{kind}: {printable(error, 200)}") from None
