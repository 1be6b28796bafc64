"""Server connections that outlive their event loop.

A new connection costs a test several milliseconds: the login, and a server process whose caches are cold. asyncpg's
connections belong to the loop that made them, though, and most suites have a loop for each test. So when a loop ends,
the session is cleaned, and its socket is kept while its asyncpg connection goes. In the next loop asyncpg makes a
real, new `asyncpg.Connection`, and where it would open a socket it finds that one: its startup message is swallowed,
and it is told again what the server said when it logged in.

What this leans on is checked in each run before it is used: one connection is parked and revived, and asked who
serves it. Whatever is not as expected, then or later, ends it for the run, and connections are opened as ever.

What a parked session does not forget: settings of a role or a database changed meanwhile (ALTER ROLE … SET), a
custom setting that was once set (`app.tenant` reads '' instead of NULL), what an extension or a procedural language
keeps in the memory of the server process. A pool in production forgets none of it either.
"""

from pytest_pgdbm.connections.parking.hanging import hang_up
from pytest_pgdbm.connections.parking.sessions import ParkedConnections

__all__ = ["ParkedConnections", "hang_up"]
