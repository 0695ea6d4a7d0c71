"""Django's MySQL backend over PyMySQL: pure Python, nothing to compile on any Python."""
