"""What went over the wire to the token endpoint and back, for tests to look for it elsewhere."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from demo_site.installation import FOLDER

FILE = "exchanges.jsonl"


class TokenRecorder(MiddlewareMixin):
    """Add a line for each exchange: what was asked, how the client authenticated, the answer."""

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        if request.path in ("/token/", "/revoke_token/"):
            exchange = {
                "asked": request.POST.dict(),
                "client_secret": _client_secret(request),
                "status": response.status_code,
                "answered": json.loads(response.content or b"{}"),
            }
            with Path(FOLDER, FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(exchange) + "\n")
        return response


def _client_secret(request: HttpRequest) -> str:
    """RFC 6749 §2.3.1: each half is form-encoded before it goes into Basic."""
    _, _, credentials = request.headers.get("Authorization", "").partition(" ")
    return unquote_plus(b64decode(credentials).decode().partition(":")[2])


def exchanges(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text("utf-8").splitlines()]
