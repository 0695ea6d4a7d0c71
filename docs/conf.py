"""How the documentation is built: `make docs`. Any warning fails it."""

import os
import re
import sys
from pathlib import Path

import django

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()  # the reference is made of the code

project = "oidc_rp"
author = "the oidc_rp authors"
release = re.findall(r'^version = "(.+)"', (DOCS.parent / "pyproject.toml").read_text(), re.M)[0]
version = release

extensions = ["myst_parser", "oidc_rp_docs"]
exclude_patterns = ["requirements.txt"]
nitpicky = True
smartquotes = False
highlight_language = "text"
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"oidc_rp {release}"
html_copy_source = False
html_show_sourcelink = False
