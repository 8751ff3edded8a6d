"""A server with OpenAI's interface on a real socket, in front of the `transformers` backend on a tiny model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from irpo_megatron.config_generation import TransformersConfig
from irpo_megatron.generation.protocol import Completion, SampleRequest, SamplingSettings
from irpo_megatron.generation.transformers import TransformersGenerator

Answer = dict[str, Any]


class CompletionServer(ThreadingHTTPServer):
    """Serves one model folder under its path.

    Attributes:
        faults: What happens to the next requests for a completion, in turn: a status, `drop`, or an answer's text.
        change: What is done to each answer, after the request's body and the completion.
        bodies: What was asked, in order of arrival.
        keys: The Authorization headers that came.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.generator = TransformersGenerator(folder, batch_size=1, settings=TransformersConfig())
        self.model = threading.Lock()
        self.counts = threading.Lock()
        self.faults: list[int | str] = []
        self.change: Callable[[Answer, Answer, Completion], Any] = lambda body, choice, completion: None
        self.seed: int | None = None
        self.names = [str(folder)]
        self.bodies: list[Answer] = []
        self.keys: set[str | None] = set()
        self.busy = self.most_busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def complete(self, body: Answer) -> Completion:
        request = SampleRequest(prompt_ids=tuple(body["prompt"]), seed=self.seed or body.get("seed", 0))
        settings = SamplingSettings(
            temperature=body["temperature"],
            top_p=body["top_p"],
            max_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
        )
        ((_, completion),) = self.generator.generate([request], settings)
        return completion

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    server: CompletionServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": name} for name in self.server.names]})
        else:
            self._answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counts:
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
            self.server.bodies.append(body)
            fault = self.server.faults.pop(0) if self.server.faults else None
        with self.server.model:
            completion = self.server.complete(body) if fault is None else None
        with self.server.counts:
            self.server.busy -= 1
        if fault == "drop":
            self.close_connection = True
        elif isinstance(fault, int):
            self._answer(fault, {"error": f"status {fault} on purpose"})
        elif isinstance(fault, str):
            self._answer(200, fault)
        else:
            assert completion is not None
            self._answer(200, {"choices": [self._choice(body, completion)]})

    def _choice(self, body: Answer, completion: Completion) -> Answer:
        choice: Answer = {
            "index": 0,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "stop_reason": None,
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = list(completion.ids)
        self.server.change(body, choice, completion)
        return choice

    def _answer(self, status: int, content: Any) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
