"""Draft with a vLLM server: our image, vitals and head make the prompt's embeddings, the server generates.

The server holds the base and the LoRA; its OpenAI-compatible `/v1/completions` is called with `prompt_embeds`.
That protocol wants each tensor as base64 of what `torch.save` writes, which is a pickle; the server reads it with
`weights_only`. We send pickles and never load one: the answer is JSON.
"""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm.compat import hub_http
from vlm.errors import UserError

KEY = "VLLM_API_KEY"
"""Environment variable of the server's key; on a command line other users could read it."""
httpx = hub_http()
TIMEOUT = httpx.Timeout(10, read=600)
"""Timeouts, seconds; a busy server may be slow to draft."""


@dataclass(frozen=True)
class VLLMServer:
    """A running `vllm serve BASE --enable-prompt-embeds --enable-lora --lora-modules MODEL=ADAPTER`."""

    url: str
    """Base URL without `/v1`."""
    model: str
    """Name of the LoRA on the server, or of a merged model."""

    def check(self) -> None:
        """Raise `UserError` if the server cannot be reached, refuses the key or does not have the model."""
        try:
            names = [str(model["id"]) for model in self._ask("GET", "models")["data"]]
        except (KeyError, TypeError):
            raise UserError(f"--vllm_url: {self.url} does not say which models it has; is it vLLM?") from None
        if self.model not in names:
            raise UserError(f"--vllm_model: {self.url} serves {', '.join(names) or 'nothing'}, not {self.model}")

    def complete(self, prompts: Sequence[torch.Tensor], most: int, end: int) -> list[tuple[str, bool]]:
        """Return greedy text after each prompt (T × H), until the token `end` or `most` of them; True if `end` came.

        The base's own generation defaults, such as a repetition penalty, were neither trained nor measured: they are
        off. Raises `UserError` for all that the server refuses or does not answer.
        """
        wanted = {"model": self.model, "prompt_embeds": [encode(prompt) for prompt in prompts], "max_tokens": most,
                  "temperature": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [end],
                  "skip_special_tokens": True}  # fmt: skip
        answer = self._ask("POST", "completions", wanted)
        try:
            choices = answer["choices"]
            texts = {int(one["index"]): (str(one["text"]), one.get("finish_reason") == "length") for one in choices}
            return [texts[index] for index in range(len(prompts))]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"--vllm_url: {self.url} did not answer with a text for each prompt") from None

    def _ask(self, method: str, what: str, body: Any = None) -> dict[str, Any]:
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = httpx.request(
                method, f"{self.url.rstrip('/')}/v1/{what}", json=body, headers=headers, timeout=TIMEOUT
            )
            values = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(f"--vllm_url: {self.url} does not answer ({type(error).__name__})") from None
        except ValueError:
            raise UserError(f"--vllm_url: {self.url} answers {answer.status_code} without JSON; is it vLLM?") from None
        if answer.status_code == 401:
            raise UserError(f"--vllm_url: {self.url} wants another key; set {KEY}")
        if answer.is_error or not isinstance(values, dict):
            raise UserError(f"--vllm_url: {self.url} refuses ({answer.status_code}): {_error_message(values)}")
        return values


def encode(prompt: torch.Tensor) -> str:
    """Serialize a prompt's embeddings (T × H) for the protocol; the server casts them to its own precision."""
    buffer = io.BytesIO()
    torch.save(prompt.detach().to("cpu", torch.float32).clone(), buffer)  # a view would be saved with its whole storage
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _error_message(values: Any) -> str:
    """Return the first line of the server's error message; older servers have it outside `error`."""
    error = values.get("error", values) if isinstance(values, dict) else values
    message = error.get("message", error) if isinstance(error, dict) else error
    return (str(message).splitlines() or ["without a word"])[0][:300]
