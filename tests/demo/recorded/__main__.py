"""The demo with every log at DEBUG, and a provider that writes down each token it is asked for.

python -m tests.demo.recorded [--port 8000] [--op-port 9000]
"""

import sys
from dataclasses import replace

from demo_site.run import projects, run_to_the_end

provider, site = projects(None)
sys.exit(
    run_to_the_end(
        [
            replace(provider, settings="tests.demo.recorded.provider_settings"),
            replace(site, settings="tests.demo.recorded.site_settings"),
        ]
    )
)
