"""Spoken clips as rows of a task, and networks trained on them in process."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from maas_ray.tasks.speech.networks import ConvLstm
from maas_ray.tasks.speech.recognition import AutomaticSpeechRecognition, AutomaticSpeechRecognitionSpec
from tests.support import speech

CLIPS = [
    "one two", "three", "four five six", "seven eight", "nine zero", "two two", "one three", "zero", "six", "five seven"
]  # fmt: skip
SMALL = ConvLstm(channels=64, hidden_size=64, layers=1, dropout=0)


def spec_of(**fields: Any) -> AutomaticSpeechRecognitionSpec:
    return AutomaticSpeechRecognitionSpec.parse(fields, source="test")


def rows_of(spec: AutomaticSpeechRecognitionSpec, clips: list[str] = CLIPS) -> list[dict[str, Any]]:
    raw = [{"audio": speech.file_of(speech.spoken(words)), "transcript": words} for words in clips]
    return [row for one in raw if (row := spec.parse_row(one))]


def learned(task: AutomaticSpeechRecognition, network: Any, rows: list[dict[str, Any]], steps: int, rate: float) -> Any:
    torch.set_num_threads(1)  # threads that wait for each other take most of the time, where other programs run
    torch.manual_seed(0)
    model = network.build(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    batch = task.collate(task.encode(rows))
    for _ in range(steps):
        loss = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def saved(task: AutomaticSpeechRecognition, network: Any, model: Any, directory: Path) -> Path:
    """A bundle, as the export writes it."""
    directory.mkdir()
    task.save(directory)
    network.write_config(model, task, directory)
    tied = set(getattr(model, "all_tied_weights_keys", ()))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def measured(task: AutomaticSpeechRecognition, model: Any, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return task.outcomes(model, task.collate(task.encode(rows)))
