"""Requests over HTTP that are sent again where that can help: the server is busy, fails, or cannot be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irpo_megatron.artifacts import Json
from irpo_megatron.config_generation import OpenAIConfig
from irpo_megatron.errors import UserError

if TYPE_CHECKING:
    import httpx

_TOO_MANY_REQUESTS = 429
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0


class Connection:
    """A server at one address; used by several threads at once.

    Args:
        key: Sent as a bearer token; None sends none.
    """

    def __init__(self, settings: OpenAIConfig, key: str | None) -> None:
        import httpx

        self._settings = settings
        self._client = httpx.Client(
            base_url=settings.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout_seconds,
            # One for each thread, so that none waits for another's.
            limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            # Neither proxies nor passwords of this machine: the address is the server's own.
            trust_env=False,
        )

    def get(self, path: str) -> Json:
        """The answer to a GET; errors as `post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Json) -> Json:
        """The answer to a POST.

        Raises:
            UserError: the server refuses the request, still fails after all retries, or answers no JSON object.
        """
        return self._ask("POST", path, body)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def _ask(self, method: str, path: str, body: Json | None) -> Json:
        import httpx
        import tenacity

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(1 + self._settings.retries),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return retrying(self._send, method, path, body)
        except httpx.HTTPStatusError as error:
            raise self._refused(error.response) from error
        except httpx.HTTPError as error:
            raise UserError(
                f"{self._settings.url} cannot be reached: {type(error).__name__}: {error}",
                f"the server answers within generation.openai.timeout_seconds = {self._settings.timeout_seconds}, "
                f"after {self._settings.retries} retries at the latest",
                "start it, correct generation.openai.url, or raise timeout_seconds; finished shards are kept",
            ) from error

    def _send(self, method: str, path: str, body: Json | None) -> Json:
        response = self._client.request(method, path, json=body)
        response.raise_for_status()
        try:
            answer: Any = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise malformed(self._settings.url, response.text)
        return answer

    def _refused(self, response: httpx.Response) -> UserError:
        return UserError(
            f"{self._settings.url} answered with status {response.status_code}: {response.text[:200]!r}",
            "the server takes the request; statuses 429 and 5xx are asked for again "
            f"{self._settings.retries} times, others are final",
            "read what the server says, here and in its log; finished shards are kept",
        )


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == _TOO_MANY_REQUESTS or error.response.is_server_error
    return isinstance(error, httpx.TransportError)


def malformed(url: str, answer: str) -> UserError:
    """The error for an answer that cannot be read."""
    return UserError(
        f"{url} answered {answer[:200]!r}",
        "an answer has the form of OpenAI's interface: for a completion, one choice with text and finish_reason",
        "check that generation.openai.url ends in /v1 and that such a server answers there",
    )
