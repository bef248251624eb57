"""A server on loopback that speaks vLLM's protocol and drafts with the model itself."""

import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from vlm import ClinicalVLM


class VLLM(ThreadingHTTPServer):
    """Speaks vLLM's protocol, checks what it checks, and drafts with the model itself, its LoRA beside the base."""

    daemon_threads = True

    def __init__(self, model: ClinicalVLM) -> None:
        super().__init__(("127.0.0.1", 0), VLLMHandler)
        self.url, self.model, self.key, self.answer = f"http://127.0.0.1:{self.server_port}", model, None, None
        self.requests: list[dict] = []

    def complete(self, request: dict) -> tuple[int, dict]:
        if request["model"] != "ward":
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist.", "code": 404}}
        prompts = []
        for text in request["prompt_embeds"]:
            tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
            if tensor.dim() != 2 or tensor.shape[1] != 64 or not tensor.is_floating_point():
                return 400, {"error": {"message": f"`prompt_embeds` of shape {tuple(tensor.shape)}", "code": 400}}
            prompts.append(tensor)
        assert request["temperature"] == 0 and request["repetition_penalty"] == 1, "greedy, without the base's habits"
        choices = [{"index": n, **self.draft(prompt, request)} for n, prompt in enumerate(prompts)]
        return 200, {"choices": choices[::-1]}

    def draft(self, prompt: torch.Tensor, request: dict) -> dict:
        with torch.no_grad():
            ids = self.model.llm.generate(
                inputs_embeds=prompt[None], max_new_tokens=request["max_tokens"], do_sample=False,
                eos_token_id=request["stop_token_ids"][0], pad_token_id=2,
            )  # fmt: skip
        text = self.model.tokenizer.decode(ids[0], skip_special_tokens=request["skip_special_tokens"])
        return {"text": text, "finish_reason": "stop" if request["stop_token_ids"][0] in ids[0] else "length"}


class VLLMHandler(BaseHTTPRequestHandler):
    server: VLLM

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.respond(200, {"object": "list", "data": [{"id": "org/base"}, {"id": "ward"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.respond(*self.server.complete(request))

    def respond(self, status: int, values: object) -> None:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, values = 401, {"error": "Unauthorized"}
        elif self.server.answer:
            status, values = self.server.answer
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def vllm(model: ClinicalVLM):
    server = VLLM(model)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
