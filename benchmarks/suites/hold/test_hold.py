"""Holds a server until its standard input ends, and prints its URL; run with -s."""

import sys


def test_hold(pgdbm_server):
    print(f"\nurl={pgdbm_server.url!s}", flush=True)
    sys.stdin.read()
