"""Say what vLLM, as it comes, does not serve of an adapter's LoRA; its PEFTHelper reads few of PEFT's options."""

from vlm.adapter.validate import AdapterFolder
from vlm.errors import UserError
from vlm.model.bases.lora_settings import layer_of, rank_of, scale_of

RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`, from its default on."""


def vllm_notes(opened: AdapterFolder) -> list[str]:
    """Describe in a line what a vLLM server needs for an adapter's LoRA, or why it cannot serve it; [] if it can."""
    if reason := _reason(opened):
        return [f"vLLM: does not serve {reason}; give it the merged model of `clinical-vlm merge`"]
    rank = _largest_rank(opened)
    if rank <= RANKS[0]:
        return []
    return [f"vLLM: a LoRA of rank {rank} needs `vllm serve --max-lora-rank {next(r for r in RANKS if r >= rank)}`"]


def refuse_unserved(opened: AdapterFolder) -> None:
    """Raise `UserError` for a LoRA that a vLLM server would refuse or compute otherwise."""
    if reason := _reason(opened):
        raise UserError(
            f"--engine vllm: a server does not serve {reason}; serve the merged model of `clinical-vlm merge`, and "
            "draft with the adapter beside it"
        )


def _reason(opened: AdapterFolder) -> str:
    llm, layers = opened.config.model.llm, _layers(opened)
    if llm.use_dora:
        return "DoRA"
    if len({round(scale_of(llm, layer), 9) for layer in layers}) > 1:
        return "a LoRA whose scale differs between layers (rank_pattern, alpha_pattern)"
    if layers and abs(scale_of(llm, layers[0]) - scale_of(llm, "")) > 1e-9:  # it reads lora_alpha and r alone
        return "a LoRA whose layers all have another scale than lora_alpha and r say"
    rank = _largest_rank(opened)
    return f"a LoRA of rank {rank}, more than {RANKS[-1]}" if rank > RANKS[-1] else ""


def _layers(opened: AdapterFolder) -> list[str]:
    return sorted({layer_of(name) for name in opened.lora})


def _largest_rank(opened: AdapterFolder) -> int:
    llm = opened.config.model.llm
    return max([llm.lora_rank, *(rank_of(llm, layer) for layer in _layers(opened))])
