"""Compute vocabulary logits from hidden states as each base does: with its bias, its scale and its soft cap."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class VocabularyHead:
    """Compute the logits of hidden states by the base's own `forward`, with its decoder replaced by the identity.

    Whatever a family does to its logits after the output layer happens here too: the scale of Cohere and Granite, the
    soft cap of Gemma 2, the bias of Phi. A plain head, which is the output layer without a bias and nothing after it,
    has its weight in `plain`: its logits are one product. Holds the base's modules and registers none.
    """

    def __init__(self, llm: PreTrainedModel) -> None:
        self._layer = llm.get_output_embeddings()
        self._llm = copy.copy(llm)  # shares all modules; its own table of them has the decoder replaced
        name = llm.base_model_prefix
        self._llm._modules = {**llm._modules, name: _Identity(getattr(llm, name))}
        self.is_plain = self._has_plain_logits()

    @property
    def plain(self) -> torch.Tensor | None:
        """Weight of a plain head, V × H; None if the base does more than a product with it."""
        return self._layer.weight if self.is_plain else None  # type: ignore[union-attr,return-value]

    def __len__(self) -> int:
        """Count the words of the vocabulary, V."""
        return len(self._layer.weight)  # type: ignore[union-attr,arg-type]

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Compute the logits of hidden states; N × H → N × V."""
        if self.is_plain:
            return F.linear(states, self.plain.to(states.dtype))  # type: ignore[union-attr]
        # The class's own forward: an instance's may be bound to the model that was copied.
        output: Any = type(self._llm).forward(self._llm, inputs_embeds=states[None])
        return output.logits[0]  # type: ignore[no-any-return]

    def _has_plain_logits(self) -> bool:
        """Check whether the logits of one token are the very tensor that an output layer without a bias returned."""
        if type(self._layer) is not nn.Linear or self._layer.bias is not None:
            return False
        weight, returned = self._layer.weight, []
        hook = self._layer.register_forward_hook(lambda *args: returned.append((args[-1], args[-1]._version)))
        try:
            with torch.no_grad():
                output: Any = type(self._llm).forward(self._llm, inputs_embeds=weight[None, :1])  # 1 × 1 × H
        finally:
            hook.remove()
        return any(made is output.logits and made._version == version for made, version in returned)


class _Identity(nn.Module):
    """Return the embeddings as hidden states; otherwise answer for the decoder whose place it takes."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_decoder", decoder)  # unregistered

    def __getattr__(self, name: str) -> Any:
        """Look up settings, such as a scale, at the decoder; its inner modules are the identity as well."""
        value = getattr(object.__getattribute__(self, "_decoder"), name)
        return self if isinstance(value, nn.Module) else value

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> "_Output":
        return _Output(last_hidden_state=inputs_embeds)


class _Output(BaseModelOutputWithPast):
    """Hold the hidden states; whatever else a family asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
