"""Accept bases whose files hold quantised weights, where a library can train LoRA beside them."""

from importlib.util import find_spec
from typing import Any, NamedTuple

from vlm.compat import dequantised_tensors
from vlm.config import LLMConfig
from vlm.errors import UserError


class Method(NamedTuple):
    """Describe a method of quantisation."""

    modules: tuple[str, ...]
    """Modules that read it."""
    install: str
    """What to give to pip."""


METHODS = {
    "bitsandbytes": Method((), ""),
    "torchao": Method(("torchao",), "torchao"),
    "compressed-tensors": Method(("compressed_tensors",), "compressed-tensors"),
    "gptq": Method(("optimum", "gptqmodel"), "optimum gptqmodel"),
    "awq": Method(("gptqmodel",), "gptqmodel"),
}
"""Methods beside whose weights PEFT trains LoRA. Others would fetch kernels as code, or have no backward pass."""


def method_of(config: Any) -> str:
    """Get the method by which a base comes quantised, from its Transformers config; empty if it does not."""
    told = getattr(config, "quantization_config", None)
    if not told:
        return ""
    values = told if isinstance(told, dict) else told.to_dict()
    return str(values.get("quant_method") or "unknown").lower()


def check_method(method: str, config: LLMConfig) -> None:
    """Raise `UserError` for a base that comes quantised by a method that cannot be used here, or not with this config.

    `nf4`, the default, and `none` both leave its weights as they come.
    """
    if method not in METHODS:
        raise UserError(
            f"model.llm.base: {config.base} comes quantised by {method[:40]!r}, beside which LoRA cannot be trained "
            f"(only {', '.join(METHODS)}); take its weights without it"
        )
    if config.quantization not in ("nf4", "none"):
        raise UserError(
            f"model.llm.quantization: {config.base} comes quantised by {method}, and cannot be put into "
            f"{config.quantization} as well; leave the option out, or take its weights without it"
        )
    missing = [name for name in METHODS[method].modules if find_spec(name) is None]
    if missing:
        raise UserError(
            f"model.llm.base: {config.base} comes quantised by {method}, which needs {', '.join(missing)}; "
            f"pip install {METHODS[method].install}"
        )


def loading_options(method: str) -> dict[str, Any]:
    """Get the options with which a base that comes quantised is loaded.

    Layers of compressed-tensors have no `weight` that PEFT could put LoRA beside, so they are dequantised at load.
    """
    if method != "compressed-tensors":
        return {}
    return {"quantization_config": dequantised_tensors()}


def forget_quantisation(llm: Any) -> None:
    """Take a dequantised base for a plain one, so that it is merged and saved as such.

    Early Transformers 5 would quantise it again, by the conversions with which it was loaded.
    """
    vars(llm.config).pop("quantization_config", None)
    vars(llm).pop("_weight_conversions", None)
    llm.hf_quantizer, llm.is_quantized, llm.quantization_method = None, False, None
