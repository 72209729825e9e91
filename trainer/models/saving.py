"""A trained policy as a folder: weights or adapter, tokenizer, model card."""

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
    """Writes a peft folder for a LoRA policy, a transformers folder for full weights, with tokenizer and model card.

    Of several processes the main one does: the folders of the others are thrown away, and may have no room for it.

    Args:
        base: where an adapter's folder says that its base is: a store location, so that stores can move (None: where it
            was loaded from). Only readers and plain transformers go by it.
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
    # In the file: transformers saves a published configuration as it is, but one that was changed in memory only if it
    # keeps all its rules, which many published ones do not.
    config = json.loads(path.read_text())
    config |= {"eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0], "pad_token_id": pad_id}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_adapter_config(path: Path, base: str) -> None:
    """Names an adapter's base in its configuration, and sorts what peft writes in another order each time."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    # peft writes sets in hash order, which differs between processes; equal adapters shall have equal digests.
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
