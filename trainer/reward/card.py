"""The model card of a reward model: its report as Markdown, for people who use the folder without Prefloop."""

from collections.abc import Sequence
from typing import Any

from app.specs import RewardSpec
from trainer.reward.model import FROZEN_POOLING
from trainer.reward.probes import DESCRIPTIONS

Figures = dict[str, Any]

ENOUGH_REFERENCES = 256  # with fewer, mean and standard deviation are uncertain (by 1 / sqrt(n): 6 % at 256)


def model_card(spec: RewardSpec, report: Figures) -> str:
    """Return the README.md of a reward model's folder, from the contents of `report.json`."""
    parts = [_model(spec, report["model"]), usage(report["model"]), _data(spec, report), _figures(report)]
    if "probes" in report:
        parts.append(_probes(report["probes"]))
    return "\n".join(["# Reward model\n", *parts, _limits(report["unseen"]["pairs"])])


USE_ADAPTERS = """## Use

The folder holds {members} and the tokenizer. Its base is `{base}` (a relative path starts at the artifact folder);
`base.json` has the fingerprint of its weights. The score needs transformers and peft:

```python
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

FOLDER, BASE, DTYPE = "this folder", "{base}", torch.float32

settings = json.loads(Path(FOLDER, "reward.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=len(settings["heads"]), dtype=DTYPE)
base.config.pad_token_id = settings["pad_token_id"]  # None: read one text at a time
model = PeftModel.from_pretrained(base, FOLDER, adapter_name="0").eval()
for member in range(1, len(settings["offsets"])):
    model.load_adapter(f"{{FOLDER}}/members/{{member}}", adapter_name=str(member))

def score(messages, response):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids += tokenizer(response, add_special_tokens=False)["input_ids"] + [settings["end_of_turn_id"]]
    rewards = []
    for member, offsets in enumerate(settings["offsets"]):
        model.set_adapter(str(member))
        with torch.no_grad():
            heads = model(input_ids=torch.tensor([ids])).logits[0].float() - torch.tensor(offsets)
        rewards += [r for r, name in zip(heads.tolist(), settings["heads"]) if name.split("/")[0] == "reward"]
    return sum(rewards) / len(rewards)
```

`python -m trainer.cli export-reward FOLDER OUT` writes folders of plain transformers, the adapters merged in fp32.
Do not merge them into a base in bf16: rounding erases most of what they changed.
"""

USE_HEADS = """## Use

The folder holds heads ({members}) on the layers of `{base}` (a relative path starts at the artifact folder), which
stay as they are, and the tokenizer. `base.json` has the fingerprint of the base's weights. The score needs
transformers:

```python
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

FOLDER, BASE, DTYPE = "this folder", "{base}", torch.float32

settings = json.loads(Path(FOLDER, "reward.json").read_text())
tensors = load_file(Path(FOLDER, "heads.safetensors"))
heads = tensors["heads"]  # (members, heads, features)
is_score = [name.split("/")[0] == "reward" for name in settings["heads"]]
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModel.from_pretrained(BASE, dtype=DTYPE).eval()

def score(messages, response):
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = tokenizer(response, add_special_tokens=False)["input_ids"] + [settings["end_of_turn_id"]]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    read = torch.stack([states[layer][0, len(prompt) :] for layer in settings["layers"]]).float()
    features = torch.cat([read.mean(1), read[:, -1]]).flatten()  # means over the response, then its last token
    score = (heads @ features - torch.tensor(settings["offsets"]))[:, is_score].mean()
    if "doubt.weight" in tensors:  # taken from responses unlike those that the heads were fitted to
        doubt = {{name: tensors[f"doubt.{{name}}"] for name in ("center", "scale", "directions", "known", "ridge")}}
        x = (features - doubt["center"]) / doubt["scale"]
        told = (doubt["directions"] @ x).square() @ doubt["known"]
        deviation = ((x.square().sum() - told).clamp(min=0) / doubt["ridge"]).sqrt()
        beyond = (deviation - tensors["doubt.limit"]).clamp(min=0)
        score -= tensors["doubt.weight"] * beyond * torch.tensor(settings["gains"])[:, is_score].mean()
    return score.item()
```
"""

USE_WHOLE = """## Use

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

FOLDER, DTYPE = "this folder", torch.float32

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, dtype=DTYPE).eval()

def score(messages, response):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids += tokenizer(response, add_special_tokens=False)["input_ids"] + [model.config.reward_end_of_turn_id]
    with torch.no_grad():
        heads = model(input_ids=torch.tensor([ids])).logits[0].float() - torch.tensor(model.config.reward_offsets)
    rewards = [r for i, r in enumerate(heads.tolist()) if model.config.id2label[i].split("/")[0] == "reward"]
    return sum(rewards) / len(rewards)
```
"""

EXPORTED = """# Reward model, exported

The adapter of one member, merged into its base in fp32.{others}

{usage}"""


def usage(model: Figures) -> str:
    """Return instructions for loading the model without Prefloop, from the report's figures about the model."""
    if model["base"] is None:
        return USE_WHOLE
    n = model["members"]
    if model["pooling"] == FROZEN_POOLING:
        return USE_HEADS.format(members="of one member" if n == 1 else f"of {n} members", base=model["base"])
    members = "an adapter with its heads" if n == 1 else f"{n} members, an adapter with its heads each,"
    return USE_ADAPTERS.format(members=members, base=model["base"])


def exported_card(members: int) -> str:
    """Return the README.md of an exported member's folder."""
    others = f" The score is the mean over all {members} members." if members > 1 else ""
    return EXPORTED.format(others=others, usage=USE_WHOLE)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table, with floats to three places and None as a dash."""
    lines = [columns, ["---"] * len(columns), *[[_cell(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _model(spec: RewardSpec, model: Figures) -> str:
    n = model["reference_samples"]
    few = "" if n >= ENOUGH_REFERENCES else f" Fewer than {ENOUGH_REFERENCES}: both are uncertain."
    rows = list(zip(model["heads"], model["gains"], model["offsets"], strict=True))
    if model["pooling"] == FROZEN_POOLING:
        read = (
            "Bradley-Terry reward model with one scalar per head. The heads read the hidden states of several layers\n"
            "of a frozen trunk: the mean over the response's tokens, and the last token, which ends the turn\n"
            f"(pooling: `{model['pooling']}`)."
        )
    else:
        read = (
            "Bradley-Terry reward model with one scalar per head, read at the last valid token of the chat with the\n"
            f"response and its end-of-turn token (pooling: `{model['pooling']}`). No response ends with the padding\n"
            "token, so pooling by padding id (plain transformers) and by mask (Prefloop) read the same token."
        )
    scale = "the d of Rao and Kupper's model" if spec.ties == "rao_kupper" else "the log-odds of preference"
    several = len([name for name in model["heads"] if name.partition("/")[0] == "reward"]) > 1
    together = " The score is the mean of all reward heads, which count alike." if several else ""
    return (
        f"{read}\n\n"
        f"The score has standard deviation 1 over {n} responses of training comparisons, and mean 0 once the offset\n"
        f"is subtracted (`{'reward_offsets` in config.json' if model['base'] is None else 'offsets` in reward.json'}; "
        f"Prefloop's loader does that).{few}\n\n"
        f"A difference of rewards divided by the gain is {scale}.{together}\n\n"
        + table(["head", "gain", "offset"], rows)
    )


def _data(spec: RewardSpec, report: Figures) -> str:
    data = report["data"]
    dropped = "".join(f"- {reason}\n" for reason in data["dropped"]) or "None.\n"
    notes = "".join(f"\n{note}\n" for note in data["notes"])
    settings = {
        "backbone": spec.backbone.base,
        "adapter of the backbone": spec.backbone.adapter,
        "snapshot (SHA-256)": data["snapshot"],
        "training comparisons": data["train_pairs"],
        "in batch elements (a ranking is one)": data["train_elements"],
        "held-out comparisons": data["heldout_pairs"],
        "members, each trained without one fold of the prompts": report["model"]["members"],
        "labels": "soft: consensus probabilities" if spec.soft_labels else "hard: the consensus winner",
        "label smoothing": spec.label_smoothing,
        "margin": spec.margin,
        "ties": spec.ties,
        "centering": spec.centering,
        "trunk": spec.trunk,
        **_learned_by(spec),
        "max_length, in tokens": spec.max_length,
        "precision": data["precision"],
        "seed": spec.seed,
    }
    rows = list(settings.items())
    return f"## Training\n\n{table(['setting', 'value'], rows)}\nLeft out of the snapshot:\n\n{dropped}{notes}"


def _learned_by(spec: RewardSpec) -> Figures:
    if spec.trunk == "frozen":
        return {"ridge": spec.ridge}
    return {
        "LoRA": f"rank {spec.lora.rank}, alpha {spec.lora.alpha}" if spec.lora else "no: all weights",
        "learning rate": f"{spec.optimiser.learning_rate:g}",
        "epochs": spec.optimiser.epochs,
        "batch size, in elements": spec.optimiser.batch_size,
    }


def _figures(report: Figures) -> str:
    train, unseen, gap = report["train"], report["unseen"], report["gap"]
    text = "## Comparisons it was not trained on\n\n"
    if not unseen["pairs"]:
        return text + "None of them has a winner, so it is not known how this model performs on unseen prompts.\n"
    rows = [["train", *train.values()]]
    if report["cross_fitted"]:
        text += (
            "Accuracy is cross-fitted: the training comparisons were split by prompt into one fold per member, and\n"
            "each fold was scored by the member that did not train on it. All members scored held-out comparisons.\n\n"
        )
        rows += [["cross-fitted", *report["cross_fitted"].values()]]
    if report["heldout"]["pairs"]:
        rows += [["held out", *report["heldout"].values()]]
    if report["cross_fitted"]:
        rows += [["both", *unseen.values()]]
    rows += [["gap (overfitting)", None, gap["accuracy"], gap["loss"]]]
    text += table(["", "pairs", "accuracy", "loss"], rows)
    if report["members"]:
        text += "\nMembers, each on the comparisons that it did not train on:\n\n" + table(
            ["member", "trained on", "unseen", "accuracy", "loss"], [list(each.values()) for each in report["members"]]
        )
        text += (
            f"\nThe members' scores of a response have a standard deviation of {report['disagreement']:.3f} on average"
        )
        text += ", in units\nof the standard deviation of the score.\n"
    if report["epochs"]:
        text += (
            "\nLoss on these comparisons after each epoch. The epoch with the lowest loss was kept, so this loss is\n"
            "slightly too low:\n\n"
        )
        rows = [[each["epoch"], each["loss"], "kept" if each["kept"] else ""] for each in report["epochs"]]
        text += table(["epoch", "loss", ""], rows)
    text += (
        "\nAgreement with the labelers, for comparisons that several labelers judged: the share of labelers who chose\n"
        "the winner (an upper bound, because their own votes decided the winner), who chose the same as another\n"
        "labeler of the comparison (the level of one person), and who chose the same as the model.\n\n"
    )
    columns = ["pairs", "accuracy", "judged_by_several", "labelers", "another", "model"]
    names = ["pairs", "accuracy", "judged by several", "the winner", "another labeler", "the model"]
    rows = [["all", *[report["against_labelers"][c] for c in columns]]]
    rows += [[f"strength {name}", *[f[c] for c in columns]] for name, f in report["by_strength"].items()]
    rows += [[name, *[f[c] for c in columns]] for name, f in report["by_slice"].items()]
    text += table(["", *names], rows)

    if len(report["heads"]) > 1:
        rows = [[name, figures["pairs"], figures["accuracy"]] for name, figures in report["heads"].items()]
        text += "\nBy head; aspects are measured by the judgments of the aspect:\n\n" + table(
            ["head", "pairs", "accuracy"], rows
        )
    if ties := report["ties"]:
        values = ", ".join(f"{value:.3f}" for value in ties["values"])
        text += (
            f"\nTies ({ties['model']}, {ties['parameter']} {values}): predicted share {_cell(ties['predicted'])}, "
            f"observed {_cell(ties['observed'])}.\n"
        )

    bars = [list(bar.values()) for bar in report["calibration"]["reliability"]]
    text += f"\nCalibration: expected calibration error {report['calibration']['ece']:.3f}.\n\n"
    text += table(["confidence", "accuracy", "pairs"], bars)
    rows = [[name, *figures.values()] for name, figures in report["separability"].items()]
    text += (
        "\nSeparability: mean difference in units of its standard deviation. Easy and hard come from the prompts'\n"
        "tags or, without a tag, from the labelers' agreement (easy: 0.8 or more).\n\n"
    )
    text += table(["", "pairs", "separability", "accuracy"], rows)
    length = report["length"]
    text += "\nLength:\n\n" + table(
        ["figure", "value"],
        [
            ["prefers the longer response more often than people do, by", length["bias"]],
            ["slope of the log-odds per 100 more tokens", length["slope_per_100_tokens"]],
            ["accuracy on pairs of similar length (within 10 %)", length["matched_accuracy"]],
        ],
    )
    return text


def _probes(probes: Figures) -> str:
    text = (
        f"## Probes\n\nMeasured on {probes['pairs']} of these comparisons, one per prompt. In {probes['too_long']} of "
        "them, rewritten responses are\ntoo long for the model; these texts are left out. Changes are in standard "
        "deviations of the reward. Texts are\nrewritten by fixed English rules.\n\n"
        "Harmless edits of one of the two responses; `flipped` is the share of comparisons whose order changes.\n\n"
    )
    rows = [
        [f"{name}: {DESCRIPTIONS[name]}", f["pairs"], f["flipped"], f["mean_change"]]
        for name, f in probes["invariance"].items()
    ]
    text += table(["edit", "pairs changed", "flipped", "mean absolute change"], rows)
    text += (
        "\nTricks; `wins` is the share of prompts for which the trick gets a higher reward than the better\n"
        "response.\n\n"
    )
    rows = [
        [f"{name}: {DESCRIPTIONS[name]}", f["prompts"], f["wins"], f["mean_change"]]
        for name, f in probes["adversarial"].items()
    ]
    return text + table(["probe", "prompts", "wins", "mean change"], rows)


def _limits(pairs: int) -> str:
    # 1.96 standard errors of a share of 1/2, where they are largest: sqrt(1/2 * 1/2 / n)
    uncertain = (
        f"- With {pairs} comparisons, accuracy is uncertain by up to {98 / pairs**0.5:.0f} percentage points "
        "(95 %). For a part\n  of the comparisons, it is more uncertain.\n"
        if pairs
        else ""
    )
    return (
        "## Limits\n\n"
        "- Rewards compare responses to the same prompt. They say little about responses to different prompts.\n"
        "- The model is right about as often as the figures above say, for similar prompts and the labelers' rubric.\n"
        "  A policy trained with this model will find its errors: collect people's judgments as well.\n"
        f"{uncertain}"
        "- A refusal may be the right answer to a harmful prompt. For such prompts, the refusal probe should win.\n"
    )
