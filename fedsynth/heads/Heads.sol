// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// Heads of the certificates of replicated runs. Who deploys it may write; nobody can change or remove what is written.
contract Heads {
    event Noted(bytes32 indexed run, uint256 round, bytes32 head);

    /// The only account that may write.
    address public immutable writer = msg.sender;
    /// Run, by the SHA-256 of its token, and round: its head; 0 where there is none.
    mapping(bytes32 => mapping(uint256 => bytes32)) public heads;
    /// The highest round of a run that has a head.
    mapping(bytes32 => uint256) public last;

    function note(bytes32 run, uint256 round, bytes32 head) external {
        require(msg.sender == writer, "not the writer");
        require(head != 0 && round != 0, "no head");
        require(heads[run][round] == 0, "this round has a head");
        heads[run][round] = head;
        if (round > last[run]) last[run] = round;
        emit Noted(run, round, head);
    }
}
