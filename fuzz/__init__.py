"""Fuzzers: what a stranger's bytes may do to wire/, the parser, messages and handshakes.

Each `*_fuzzer` module has `one_input(data)`, which raises if the package misbehaves and needs
nothing but the package; `wire_fuzzer.c` is the same in C. `engine` runs one of them guided by
coverage, `python -m fuzz` builds what is needed and runs all. `corpus` has seeds, `crashes` inputs
that once failed; tests/test_fuzz_corpus.py replays both. See docs/fuzzing.md.
"""
