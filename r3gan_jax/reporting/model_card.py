"""The model card of a published run: Markdown with metadata, as the Hugging Face Hub shows and searches it.

The metadata: https://huggingface.co/docs/hub/model-cards
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from etils import epath

from r3gan_jax.reporting import series, status
from r3gan_jax.training.logging import read_metrics
from r3gan_jax.training.protocol import read_protocol
from r3gan_jax.training.workdir import read_data

PROJECT = "https://github.com/r3gan-jax/r3gan_jax"
_TASK = "unconditional-image-generation"
"""The Hub's task for images that are not asked for in words."""


def model_card(
  workdir: epath.Path,
  config: Mapping[str, Any],
  images_seen: int,
  parameters: int,
  address: str,
  licence: str,
  samples: str,
  caption: str,
  can_continue: bool,
) -> str:
  """Returns the card.

  Args:
    workdir: of the run; scores, the record of its data and changed settings are read here.
    config: of the run; may lack anything but `algorithm`.
    images_seen: of the checkpoint; only scores of it are shown.
    parameters: how many numbers the published networks have.
    address: what `r3gan_jax.load` takes.
    licence: an identifier of the Hub.
    samples: the file name of a picture of samples.
    caption: what the picture shows.
    can_continue: whether D and the optimisers are published, too.
  """
  data = {"source": "not recorded"} | dict(config.get("data", {}))
  name = config.get("name") or config["algorithm"]
  scores = [
    (score, float(value))
    for score in series.scores(read_metrics(workdir), read_protocol(workdir))
    for at, value in zip(score.curve.images_seen, score.curve.values, strict=True)
    if at == images_seen and np.isfinite(value)
  ]
  metadata = {
    "library_name": "r3gan_jax",
    "license": licence,
    "pipeline_tag": _TASK,
    "tags": ["gan", config["algorithm"], "jax", "flax"],
  }
  if scores:
    dataset = data.get("name") or data["source"]
    metrics = [{"type": score.name, "name": score.title, "value": value} for score, value in scores]
    result = {"task": {"type": _TASK}, "dataset": {"type": dataset, "name": dataset}, "metrics": metrics}
    metadata["model-index"] = [{"name": name, "results": [result]}]
  table = _table(
    ("score", "value", "protocol"), [(score.title, f"{value:.6g}", score.details) for score, value in scores]
  )
  return f"""---
{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---

# {name}

The averaged generator of a GAN (`{config["algorithm"]}`), trained with [r3gan_jax]({PROJECT}):
{images_seen:,} images seen, {parameters:,} parameters.

![Samples]({samples})

*{caption}*

## Use

    pip install "r3gan_jax[hub] @ git+{PROJECT}"

```python
import r3gan_jax

gan = r3gan_jax.load("{address}")
images = gan.sample(range(16))  # uint8 [16, H, W, C]
```

## Data

{_table(("", ""), _data(data, read_data(workdir)))}

## Training

{_table(("", ""), _training(config, images_seen))}

`config.json` has all settings.{_changes(workdir)}

## Scores

{table if scores else "These weights have not been scored."}

## Limits

- It draws what its data show, with their gaps and biases, and a sample can resemble a training image.
- The licence `{licence}` is about the weights. That of the data may restrict what samples can be used for.
- A score depends on its protocol: compare only scores with equal ones.
- A seed gives the same image again; on another kind of processor it may differ by rounding.
- {"D and the state of the optimisers are included." if can_continue else "Training cannot continue from G alone."}
"""


def _data(data: Mapping[str, Any], recorded: tuple[int, Sequence[str]] | None) -> list[tuple[str, str]]:
  size = data.get("resolution", "?")
  rows = [("source", data["source"])]
  rows += [(label, data[label]) for label in ("name", "split") if data.get(label) and data["source"] == "tfds"]
  rows += [("images", f"{recorded[0]:,}")] if recorded else []
  rows += [("size", f"{size}x{size}, {'grey' if data.get('channels') == 1 else 'RGB'}")]
  if data.get("num_classes"):
    names = f": {', '.join(f'{number} {name}' for number, name in enumerate(recorded[1]))}" if recorded else ""
    rows += [("classes", f"{data['num_classes']}{names}")]
  changes = {"labelled_images": "labelled images", "label_noise": "redrawn labels", "x_flip": "mirrored, too"}
  rows += [(label, json.dumps(data[key])) for key, label in changes.items() if data.get(key)]
  return rows


def _training(config: Mapping[str, Any], images_seen: int) -> list[tuple[str, str]]:
  rows = [("recipe", config["name"])] if config.get("name") else []
  rows += [("GAN", config["algorithm"])]
  rows += [(label, str(config[key])) for key, label in (("batch_size", "batch"), ("seed", "seed")) if key in config]
  rows += [("images seen", f"{images_seen:,}")]
  rows += [("started from", "the weights of another run")] if config.get("init_from") else []
  return rows


def _changes(workdir: epath.Path) -> str:
  # The paths of other runs are nobody's business.
  changes = [change for change in status.changed_settings(workdir) if change[1] != "init_from"]
  if not changes:
    return ""
  table = _table(("at images seen", "setting", "before", "after"), changes)
  return f" Some were changed on the way:\n\n{table}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
