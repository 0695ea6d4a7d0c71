"""What Django loads; MySQLdb has to be PyMySQL before Django's backend imports it."""

import pymysql

pymysql.install_as_MySQLdb()

from django.db.backends.mysql.base import DatabaseWrapper  # noqa: E402

__all__ = ["DatabaseWrapper"]
