"""Save a trained policy to a folder: weights or adapter, tokenizer, model card."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.utils import GENERATION_CONFIG_NAME

from trainer.batching.chat import stop_ids
from trainer.models.inspection import ADAPTER_CONFIG, record_base
from trainer.models.loading import POLICY, notes_on
from trainer.processes import accelerator


def save_policy(model: Any, tokenizer: Any, folder: Path, base: str | None = None) -> None:
    """Write a policy with tokenizer and model card: a peft folder for LoRA, a transformers folder for full weights.

    With several processes, only the main one writes. The other processes' folders are discarded and may lack the space.

    Args:
        base: the base's location to write into an adapter's folder. It is a location in the store, so that stores can
            move; None means where the base was loaded from. Only people and plain transformers read it.
    """
    if not accelerator().is_main_process:
        return
    if isinstance(model, PeftModel):
        loaded_from = model.get_base_model().name_or_path
        base = base or loaded_from
        model.save_pretrained(folder, selected_adapters=[POLICY])
        write_adapter_config(folder / ADAPTER_CONFIG, base)
        record_base(folder, loaded_from, base)
        card = ADAPTER_CARD.format(base=base)
    else:
        model.save_pretrained(folder)
        _write_generation_config(folder / GENERATION_CONFIG_NAME, stop_ids(model, tokenizer), tokenizer.pad_token_id)
        card = FULL_CARD
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("".join([card, *(f"\n{note}\n" for note in notes_on(tokenizer))]))


ADAPTER_CARD = """---
base_model: {base}
library_name: peft
---
# Policy: LoRA adapter on {base}

Load it onto its base, wherever that lies:

    base = AutoModelForCausalLM.from_pretrained(BASE_FOLDER)
    policy = PeftModel.from_pretrained(base, THIS_FOLDER)

`AutoModelForCausalLM.from_pretrained(THIS_FOLDER)` finds the base by the name above: a relative one from the artifact
folder. `base.json` has the fingerprint of the weights it was trained on; Prefloop refuses others.
"""

FULL_CARD = """# Policy: full weights

    policy = AutoModelForCausalLM.from_pretrained(THIS_FOLDER)
"""


def _write_generation_config(path: Path, stop_ids: list[int], pad_id: int) -> None:
    # Edit the file instead of the object. transformers saves a published configuration unchanged, but validates one
    # that was changed in memory, and many published configurations break its rules.
    config = json.loads(path.read_text())
    config |= {"eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0], "pad_token_id": pad_id}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_adapter_config(path: Path, base: str) -> None:
    """Write the base's name into an adapter's configuration, and sort its lists so that digests are reproducible."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    # peft writes sets in hash order, which differs between processes; equal adapters must have equal digests.
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
