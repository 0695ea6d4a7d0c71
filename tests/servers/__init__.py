"""Real servers for tests and benchmarks: each is started once a process, on first use.

    postgresql().settings()          an entry for DATABASES; so does mariadb()
    postgresql().new_database()      the same, of an empty database of its own
    redis().url                      for CACHES
    npm_op().issuer                  the certified OpenID Provider
    tiny_op().issuer                 the one of the tests, which misbehaves on demand

They listen on free ports of the loopback interface and end with this process, however it ends.
Their programs are Debian's packages postgresql, mariadb-server, redis-server, nodejs and npm.
"""

from .daemons import ServerError
from .databases import DatabaseServer, RedisServer, mariadb, postgresql, redis, sqlite
from .npm import NpmOP, npm_op
from .tiny_op import TinyOP, tiny_op

__all__ = [
    "DatabaseServer",
    "NpmOP",
    "RedisServer",
    "ServerError",
    "TinyOP",
    "mariadb",
    "npm_op",
    "postgresql",
    "redis",
    "sqlite",
    "tiny_op",
]
