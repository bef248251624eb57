"""The text loss by the base's own logits at every place, to hold the loss of supervised places against."""

import torch
from torch.nn import functional as F

from vlm.data.collate import IGNORED, Batch
from vlm.model.clinical_vlm import ClinicalVLM


@torch.no_grad()
def loss_of_all_logits(model: ClinicalVLM, batch: Batch) -> float:
    """Compute the text loss from the language model's own logits at every place, B × T × V."""
    encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
    embeddings = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
    logits = model.base(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED).item()
