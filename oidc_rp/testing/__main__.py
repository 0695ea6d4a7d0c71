"""An OpenID Provider as a process of its own: `python -m oidc_rp.testing --port 9000`."""

import argparse
import contextlib
import json

from .provider import OpenIDProvider


def main() -> None:
    """Run an OP until it is told to end, or for as long as `--seconds` says."""
    parser = argparse.ArgumentParser(
        prog="python -m oidc_rp.testing",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--lifetime", type=float, default=60, help="of access tokens, in seconds")
    parser.add_argument("--delay", type=float, default=0, help="seconds that a refresh takes")
    parser.add_argument("--overlap", type=float, default=0, help="seconds of a spent token's grace")
    parser.add_argument("--seconds", type=float, default=1800, help="to run, at most")
    options = parser.parse_args()
    try:
        provider = OpenIDProvider(port=options.port)
    except OSError as error:
        parser.exit(1, f"Port {options.port} cannot be used ({error.strerror}): choose another.\n")
    with provider as op:
        op.access_token_lifetime, op.overlap = options.lifetime, options.overlap
        op.refresh_delay = options.delay
        op.post_logout_redirect_uris = None  # any: it cannot know where its client will run
        names = ("issuer", "client_id", "client_secret")
        print(json.dumps({name: getattr(op, name) for name in names}), flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            op.stopped.wait(options.seconds)


if __name__ == "__main__":
    main()
