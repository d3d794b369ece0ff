"""The page at `/`: one file that asks nothing of any other site, which its headers hold it to."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

from symboliclight.serve.fields import HEARD
from symboliclight.serve.requests import Defaults


async def page(http: HttpRequest) -> Response:
    """It needs no key: there is nothing in it."""
    text, policy = _file()
    return HTMLResponse(text, headers={
        "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache"})


def features(spikes: bool, states: bool) -> list[str]:
    """What a page may ask for beside OpenAI's smallest request."""
    return ["logprobs"] * ("logprobs" in HEARD) + ["spikes"] * spikes + ["states"] * states


def defaults(of: Defaults) -> dict[str, Any]:
    """What a request gets that does not say otherwise."""
    how = of.sampling
    return {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p, "max_tokens": of.max_tokens}


@cache
def _file() -> tuple[str, str]:
    """The page, and a policy that lets run what stands in it alone."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    script, style = (" ".join(map(_hash, re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)))
                     for tag in ("script", "style"))
    return text, (f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
                  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
