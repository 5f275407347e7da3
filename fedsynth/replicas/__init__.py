"""Replicated aggregation: several parties each compute a round, and equal signed statements are the proof.

Pure formats and arithmetic, no network and no clock: content ids of arrays, statements in in-toto's form, DSSE
envelopes, quorums, certificates that form a chain, and what an audit makes of them.
"""
