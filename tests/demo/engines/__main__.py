"""The demo with another session engine, the one of DEMO_SESSION_ENGINE.

python -m tests.demo.engines [--port 8000] [--op-port 9000]
"""

import sys
from dataclasses import replace

from demo_site.run import projects, run_to_the_end

provider, site = projects(None)
sys.exit(run_to_the_end([provider, replace(site, settings="tests.demo.engines.site_settings")]))
