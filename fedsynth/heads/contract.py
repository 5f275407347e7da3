"""The contract ``Heads.sol``, as an Ethereum node takes it.

The npm package ``solc`` compiles it, see ``tests/long/test_ledger.py``: :data:`COMPILER` with :data:`SETTINGS`.
"""

from __future__ import annotations

from typing import Any

COMPILER = "0.8.37"
SETTINGS: dict[str, Any] = {
    "optimizer": {"enabled": True, "runs": 200},
    # No word of the file or its author behind the code: equal sources make equal bytes.
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
    # The oldest machine that does it: consortia update their nodes late.
    "evmVersion": "paris",
}
BYTECODE = (
    "60a060405233608052348015601357600080fd5b506080516102f461003560003960008181606b015261010b01526102f46000f3fe6080"
    "60405234801561001057600080fd5b506004361061004c5760003560e01c8063399d8a4814610051578063453a2abc14610066578063b7"
    "1be2b8146100aa578063cf1250f5146100e0575b600080fd5b61006461005f36600461028d565b610100565b005b61008d7f0000000000"
    "00000000000000000000000000000000000000000000000000000081565b6040516001600160a01b0390911681526020015b6040518091"
    "0390f35b6100d26100b83660046102b9565b600060208181529281526040808220909352908152205481565b6040519081526020016100"
    "a1565b6100d26100ee3660046102db565b60016020526000908152604090205481565b336001600160a01b037f00000000000000000000"
    "00000000000000000000000000000000000000000000161461016e5760405162461bcd60e51b815260206004820152600e60248201526d"
    "3737ba103a3432903bb934ba32b960911b60448201526064015b60405180910390fd5b801580159061017c57508115155b6101b2576040"
    "5162461bcd60e51b81526020600482015260076024820152661b9bc81a19585960ca1b6044820152606401610165565b60008381526020"
    "81815260408083208584529091529020541561020f5760405162461bcd60e51b81526020600482015260156024820152741d1a1a5cc81c"
    "9bdd5b99081a185cc818481a195859605a1b6044820152606401610165565b600083815260208181526040808320858452825280832084"
    "9055858352600190915290205482111561024d5760008381526001602052604090208290555b604080518381526020810183905284917f"
    "d8668d091fcbbfa1b5deaf9044acb0cac9aaa3638fecae07ac1001a6c803d719910160405180910390a2505050565b6000806000606084"
    "860312156102a257600080fd5b505081359360208301359350604090920135919050565b600080604083850312156102cc57600080fd5b"
    "50508035926020909101359150565b6000602082840312156102ed57600080fd5b503591905056"
)
"""What deploys it, in hexadecimal digits."""
CODE = BYTECODE[106:]
"""What then lies on the chain, but for the writer's address at :data:`WRITER_AT`."""
WRITER_AT = (214, 534)
"""Digits of the code at which the writer's address stands, 64 each."""


def _function(name: str, inputs: tuple[str, ...], output: str = "") -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "inputs": [{"name": f"input{k}", "type": kind} for k, kind in enumerate(inputs)],
        "outputs": [{"name": "", "type": output}] if output else [],
        "stateMutability": "view" if output else "nonpayable",
    }


ABI = [
    _function("writer", (), "address"),
    _function("heads", ("bytes32", "uint256"), "bytes32"),
    _function("last", ("bytes32",), "uint256"),
    _function("note", ("bytes32", "uint256", "bytes32")),
]


def is_deployed(code: str) -> bool:
    """Return whether what lies on a chain is this contract: a like one might let its writer change heads.

    Args:
        code: hexadecimal digits, without 0x.
    """
    for start in WRITER_AT:
        code = f"{code[:start]}{'0' * 64}{code[start + 64 :]}"
    return code == CODE
