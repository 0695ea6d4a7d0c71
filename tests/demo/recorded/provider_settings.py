from demo_site.provider.settings import *  # noqa: F403
from demo_site.provider.settings import MIDDLEWARE as USUAL

MIDDLEWARE = ["tests.demo.recorded.recorder.TokenRecorder", *USUAL]
